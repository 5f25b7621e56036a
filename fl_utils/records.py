"""A run is a record: a folder with config.json, metrics.csv, predictions.csv, environment.json.

The folder's name carries a hash of the whole configuration and of the data set's fingerprint,
so that a record is found again only for the same question on the same images. A record is
written to a temporary name and renamed: it is there as a whole or not at all.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pandas as pd

from fl_utils.config import ExperimentConfig
from fl_utils.paths import project_root

METRIC_COLUMNS = ["round", "client", "split", "metric", "value"]
_FILES = ("config.json", "metrics.csv", "predictions.csv", "environment.json")
_VERSIONS = ("tensorflow-cpu", "tensorflow-federated", "numpy", "scikit-learn", "pandas")


class RecordError(RuntimeError):
    """A record cannot be written or read; the text names the folder and the reason."""


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One finished run.

    Attributes:
      config: the whole configuration.
      metrics: long form; columns round, client, split, metric, value.
      predictions: test predictions of the selected model; columns client, split, example,
        group, label, p0..p{K-1}.
      environment: versions, git commit, fingerprint, duration_s, and facts about the run.
      path: the record's folder.
    """

    config: dict
    metrics: pd.DataFrame
    predictions: pd.DataFrame
    environment: dict
    path: Path


def run_id(config: ExperimentConfig, fingerprint: str) -> str:
    """`<dataset>_<method>_<partition>_s<seed>_<hash8>`.

    Fields at their default are left out of the hash, so that a field added later does not orphan
    the records of before. A default must therefore never change: it is part of every record's meaning.
    """
    text = json.dumps(config.model_dump(exclude_defaults=True), sort_keys=True) + fingerprint
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{config.dataset}_{config.method}_{config.partition}_s{config.seed}_{digest}"


@functools.cache
def _git_commit() -> str:
    """The commit that is checked out, with "+changes" when the code differs from it."""
    def git(*arguments):
        return subprocess.run(
            ["git", *arguments], cwd=project_root(), capture_output=True, text=True, timeout=10
        )

    try:
        commit = git("rev-parse", "HEAD")
        # Results and notebooks change while a sweep runs; what matters is the code.
        changed = git("status", "--porcelain", "--", "fl_utils", "pyproject.toml", "uv.lock")
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    if commit.returncode:
        return "unknown"
    return commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def describe_environment() -> dict:
    """Versions and commit; no host name, no path, no clock time."""
    return {
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "git_commit": _git_commit(),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
    }


def write_record(
    root: Path,
    config: ExperimentConfig,
    *,
    fingerprint: str,
    metrics: pd.DataFrame,
    predictions: pd.DataFrame,
    duration_s: float,
    facts: dict | None = None,
) -> RunRecord:
    """Writes one finished run, whole or not at all.

    Args:
      root: folder of the records, e.g. `paths.runs_root("paper")/<experiment>`.
      config: the run's configuration.
      fingerprint: of the data set it was trained on.
      metrics: columns METRIC_COLUMNS.
      predictions: test predictions at the selected round.
      duration_s: training time in seconds.
      facts: further facts for environment.json (class counts, selected round, ...).
    Raises:
      RecordError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    if list(metrics.columns) != METRIC_COLUMNS:
        raise RecordError(f"metrics has columns {list(metrics.columns)}, expected {METRIC_COLUMNS}.")
    environment = describe_environment() | {
        "dataset_fingerprint": fingerprint,
        "duration_s": round(duration_s, 1),
    } | (facts or {})

    def write(folder: Path) -> None:
        _write_json(folder / "config.json", config.model_dump())
        # 6 significant digits: enough for every table, and diffs stay readable.
        metrics.to_csv(folder / "metrics.csv", index=False, float_format="%.6g")
        predictions.to_csv(folder / "predictions.csv", index=False, float_format="%.5f")
        _write_json(folder / "environment.json", environment)

    return _install(Path(root) / run_id(config, fingerprint), write)


def install_record(root: Path, name: str, files: Mapping[str, bytes]) -> RunRecord:
    """Puts a record that was made elsewhere in its place, whole or not at all; one that is there already is kept.

    Args:
      root: folder of the records.
      name: the record's name.
      files: content of each file of a record.
    Raises:
      RecordError: files are missing or others are given, they belong to another name, or they cannot be written.
    """
    if set(files) != set(_FILES):
        raise RecordError(f"The record {name} came with the files {sorted(files)}, expected {sorted(_FILES)}.")
    try:
        config = ExperimentConfig(**json.loads(files["config.json"]))
        belongs_to = run_id(config, json.loads(files["environment.json"])["dataset_fingerprint"])
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError(f"The record {name} came damaged: {error}. Run it again.") from error
    if belongs_to != name:
        raise RecordError(f"The record {name} came with the files of {belongs_to}; both sides need the same fl_utils.")
    final = Path(root) / name
    if final.is_dir():
        return load_record(final)

    def write(folder: Path) -> None:
        for file, content in files.items():
            (folder / file).write_bytes(content)

    return _install(final, write)


def _install(final: Path, write: Callable[[Path], None]) -> RunRecord:
    write_folder(final, write, what="record", after="; the training itself resumes from its checkpoint")
    return load_record(final)


def write_folder(final: Path, write: Callable[[Path], None], *, what: str, after: str = "") -> None:
    """Lets `write` fill a temporary folder, and renames it: a reader sees a whole folder or none.

    Args:
      final: the folder; one that is there already is replaced.
      write: is handed the temporary folder.
      what: what the folder holds, for the error's text.
      after: how the error's text ends.
    Raises:
      RecordError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    root = final.parent
    temporary = replaced = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=root))
        temporary.chmod(0o755)  # mkdtemp's 0700 would hide it from other users.
        write(temporary)
        if final.exists():
            # Moved aside first: deleting takes time, and what is killed meanwhile must not leave half a folder.
            final.rename(replaced := temporary.with_name(temporary.name + "-replaced"))
        temporary.rename(final)
    except OSError as error:
        raise RecordError(
            f"The {what} {final.name} could not be written to {root}: {error.strerror or error}. "
            f"Free some space or set FL_UTILS_RESULTS to another folder, then run again{after}."
        ) from error
    finally:
        for leftover in filter(None, (temporary, replaced)):
            shutil.rmtree(leftover, ignore_errors=True)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=False) + "\n")


def load_record(path: Path) -> RunRecord:
    """Reads one record.

    Raises:
      RecordError: a file is missing or unreadable.
    """
    path = Path(path)
    missing = [name for name in _FILES if not (path / name).is_file()]
    if missing:
        raise RecordError(f"{path} is not a whole record: {', '.join(missing)} missing. Delete it and run again.")
    try:
        return RunRecord(
            config=json.loads((path / "config.json").read_text()),
            metrics=pd.read_csv(path / "metrics.csv", dtype={"client": str, "split": str, "metric": str}),
            predictions=pd.read_csv(path / "predictions.csv", dtype={"client": str, "split": str}),
            environment=json.loads((path / "environment.json").read_text()),
            path=path,
        )
    except ValueError as error:
        raise RecordError(f"{path} cannot be read: {error}. Delete it and run again.") from error


def find_record(root: Path, config: ExperimentConfig, fingerprint: str | None) -> RunRecord | None:
    """The record of this configuration, or None.

    Args:
      root: folder of the records.
      config: what is looked for.
      fingerprint: of the data set; None when the images are not at hand (the published
        records can be read without them), then any record of this configuration serves.
    """
    if fingerprint is not None:
        path = Path(root) / run_id(config, fingerprint)
        return load_record(path) if path.is_dir() else None
    prefix = run_id(config, "")[:-8]
    # A record from before a field existed stands for the field's default, never for another value.
    defaults = {name: field.default for name, field in ExperimentConfig.model_fields.items()}
    for path in sorted(Path(root).glob(f"{prefix}*")):
        record = load_record(path)
        if {**defaults, **record.config} == config.model_dump():
            return record
    return None


def load_all(root: Path, **wanted) -> Iterator[RunRecord]:
    """Every record below `root` whose configuration has the wanted values, in order of name."""
    for path in sorted(Path(root).glob("[!.]*/")):
        record = load_record(path)
        if all(record.config.get(field) == value for field, value in wanted.items()):
            yield record
