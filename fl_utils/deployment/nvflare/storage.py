"""Where the server keeps jobs and what came of them: in its own folder, wherever that lies."""

from pathlib import Path

from nvflare.app_common.storages.filesystem_storage import FilesystemStorage

JOBS = "jobs"


class OwnStorage(FilesystemStorage):
    """NVFlare's storage in files, below the folder in which the server's process works."""

    def __init__(self):
        root = Path.cwd() / "kept"
        (root / JOBS).mkdir(parents=True, exist_ok=True)  # NVFlare looks for jobs before it has stored one
        super().__init__(root_dir=str(root), uri_root="/")
