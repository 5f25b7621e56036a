"""Where things lie: data, results, caches. No other module builds these paths.

Environment variables (all optional):
  FL_UTILS_DATA: folder that holds the data sets; default `data/` of the project.
  FL_UTILS_RESULTS: folder for records, figures and tables; default `results/`.
  FL_UTILS_CACHE: folder for decoded images, checkpoints and logs; default `.cache/`.
"""

import os
from pathlib import Path


def project_root() -> Path:
    """The folder that holds `pyproject.toml`, `notebooks/` and `results/`."""
    return Path(__file__).resolve().parent.parent


def _from_environment(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "").strip()
    if not value:
        return project_root() / default
    path = Path(value).expanduser()
    return path if path.is_absolute() else (project_root() / path).resolve()


def data_root() -> Path:
    """The folder that holds the data sets; it need not exist."""
    return _from_environment("FL_UTILS_DATA", "data")


def dataset_root(folder: str) -> Path | None:
    """The folder of one data set, or None when it is not there."""
    path = data_root() / folder
    return path if path.is_dir() else None


def results_root(profile: str) -> Path:
    """`results/` for the published profile "paper", `results/<profile>/` for the others."""
    root = _from_environment("FL_UTILS_RESULTS", "results")
    return root if profile == "paper" else root / profile


def runs_root(profile: str) -> Path:
    """The folder of a profile's run records."""
    return results_root(profile) / "runs"


def cache_root() -> Path:
    """The folder for what can be made again: decoded images, checkpoints, logs."""
    return _from_environment("FL_UTILS_CACHE", ".cache")


def checkpoints_root() -> Path:
    """The folder for the states of unfinished runs and for selected model weights."""
    return cache_root() / "checkpoints"
