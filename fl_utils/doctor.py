"""What this machine has and what is wrong with it: `make doctor`.

Everything beyond the standard library is imported inside the check that needs it, so that one
broken package makes one failed check and not a traceback.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from fl_utils import paths, platform_check

MAX_ENVIRONMENT_BYTES = 3 * 10**9
# Records, figures and caches of a run; the environment itself is there already.
MIN_FREE_BYTES = 10**9
# The suite's own peak is lower; this leaves room for a browser and JupyterLab.
MIN_MEMORY_BYTES = 4 * 10**9
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
      name: what was looked at.
      status: "ok", "note" (fine, but worth knowing) or "problem" (makes the exit code 1).
      detail: what was found and, for a problem, what to do.
    """

    name: str
    status: str
    detail: str


def examine(*, start_worker=True):
    """Yields the findings one by one, the slow ones last.

    Args:
      start_worker: whether TFF's worker is started and tested (about 10 s).
    """
    checks = [
        check_platform,
        check_python,
        check_versions,
        check_environment_size,
        check_data,
        check_disk,
        check_machine,
        check_chromium,
    ]
    if start_worker:
        checks.append(check_worker)
    for check in checks:
        try:
            yield check()
        except Exception as error:  # a doctor that falls ill says so, and goes on
            name = check.__name__.removeprefix("check_").replace("_", " ")
            yield Finding(name, "problem", f"the check failed: {type(error).__name__}: {error}")


def run(*, start_worker=True, write=print):
    """Writes the report, a line a finding.

    Args:
      start_worker: see `examine`.
      write: function that takes a line.
    Returns:
      The exit code: 0, or 1 when there is a problem.
    """
    problems = 0
    for finding in examine(start_worker=start_worker):
        write(f"{finding.status:<8}{finding.name:<17}{finding.detail}")
        problems += finding.status == "problem"
    if problems:
        write(f"{problems} problem{'s' if problems > 1 else ''} found.")
        return 1
    write("No problem found.")
    return 0


def check_platform():
    """Whether TensorFlow Federated has a wheel for this platform."""
    problem = platform_check.platform_problem(
        platform.system(),
        platform.machine(),
        platform_check.read_libc(),
        sys.maxsize > 2**32,
        platform_check.read_cpu_flags(),
    )
    if problem:
        return Finding("platform", "problem", problem)
    detail = f"{platform.system()} {platform.machine()}, {platform_check.read_libc()}"
    return Finding("platform", "ok", detail)


def check_python():
    """Whether this is Python 3.11."""
    version = platform.python_version()
    if sys.version_info[:2] != (3, 11):
        return Finding("python", "problem", f"{version}; 3.11 is needed: run `make setup`")
    return Finding("python", "ok", version)


def check_versions(lock=None):
    """Whether the installed versions are those of the lock.

    Args:
      lock: Path of a file of `name==version` lines; None for the project's requirements.lock.
    """
    lock = lock or paths.project_root() / "requirements.lock"
    if not lock.is_file():
        return Finding("versions", "problem", f"{lock} is missing: restore it with `git checkout`")
    wanted = read_requirements(lock.read_text(encoding="utf-8"))
    wrong = []
    # In the environment itself: Ray, once loaded, puts older copies of some packages before it on the path.
    places = sorted({sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")})
    for name, version in sorted(wanted.items()):
        found = next(iter(importlib.metadata.distributions(name=name, path=places)), None)
        installed = found.version if found else "missing"
        if installed != version:
            wrong.append(f"{name} {installed} (lock: {version})")
    if wrong:
        listed = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        return Finding("versions", "problem", f"differ from the lock: {listed}; run `make setup`")
    main = ("tensorflow-federated", "tensorflow-cpu", "numpy", "scikit-learn")
    shown = ", ".join(f"{name} {wanted[name]}" for name in main if name in wanted)
    return Finding("versions", "ok", f"{len(wanted)} packages as locked: {shown}")


def read_requirements(text):
    """The versions that a requirements file gives for this platform and Python.

    Args:
      text: lines `name==version`, with or without a marker; comments are left out.
    Returns:
      dict: normalised package name -> version.
    Raises:
      ValueError: a line is something else.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    versions = {}
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if not line:
            continue
        requirement = Requirement(line)
        pinned = re.fullmatch(r"==([^=*,]+)", str(requirement.specifier))
        if pinned is None:
            raise ValueError(f"expected `name==version`, read {line!r}: run `make lock`")
        if requirement.marker is None or requirement.marker.evaluate():
            versions[canonicalize_name(requirement.name)] = pinned[1]
    return versions


def check_environment_size(prefix=None):
    """Whether the environment stays under 3 GB, so that a stray torch or CUDA is noticed."""
    size = folder_bytes(Path(prefix or sys.prefix))
    detail = f"{size / 1e9:.1f} GB in {prefix or sys.prefix}"
    if size >= MAX_ENVIRONMENT_BYTES:
        advice = "3 GB at most are expected: `make clean setup` removes what does not belong there"
        return Finding("environment size", "problem", f"{detail}; {advice}")
    return Finding("environment size", "ok", detail)


def folder_bytes(folder):
    """Bytes on disk of a folder, links not followed, a file with several names counted once."""
    seen = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            status = os.lstat(os.path.join(parent, name))
            seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def check_data():
    """Which real data sets are found; none is fine, the phantoms then stand in."""
    from fl_utils.data.catalogue import CARDS

    root = paths.data_root()
    folders = {card.name: card.folder for card in CARDS.values() if card.folder}
    found = [name for name, folder in folders.items() if paths.dataset_root(folder) is not None]
    if found:
        missing = sorted(set(folders) - set(found))
        tail = f"; not there: {', '.join(missing)}" if missing else ""
        return Finding("data", "ok", f"{', '.join(found)} in {root}{tail}")
    if os.environ.get("FL_UTILS_DATA", "").strip() and not root.is_dir():
        return Finding("data", "problem", f"FL_UTILS_DATA is {root}, which is no folder")
    return Finding("data", "note", f"no real data in {root}: phantoms are used (see data/README.md)")


def check_disk():
    """Whether there is room for results."""
    free = shutil.disk_usage(paths.project_root()).free
    detail = f"{free / 1e9:.0f} GB free at {paths.project_root()}"
    if free < MIN_FREE_BYTES:
        return Finding("disk", "problem", f"{detail}; at least 1 GB is needed: free some")
    return Finding("disk", "ok", detail)


def check_machine():
    """Cores and memory that this process may use."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    detail = f"{cores} cores, {memory / 1e9:.0f} GB memory"
    if memory < MIN_MEMORY_BYTES:
        return Finding("machine", "note", f"{detail}; with less than 4 GB large runs may be killed")
    return Finding("machine", "ok", detail)


def check_chromium(which=shutil.which):
    """Whether a browser is there; only the check of the report's look would use it."""
    found = next(filter(None, map(which, CHROMIUM_NAMES)), None)
    return Finding("chromium", "ok" if found else "note", found or "none; nothing needs it yet")


def check_worker():
    """Starts TFF's worker, which tests itself, and ends it."""
    from fl_utils.learning import engine

    start = time.monotonic()
    was_running = engine.is_running()
    engine.ensure_started()
    if not was_running:
        engine.stop()
    return Finding("TFF worker", "ok", f"started and answered in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    sys.exit(run())
