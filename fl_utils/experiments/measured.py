"""What is computed once from finished runs: tables, facts and arrays in one folder, written as a whole and found again.

The attacks, scores and measurements of the notebooks stand so beside the records of the runs that they are about. A
folder's name carries a hash of all that decides its content (`digest`); its files are one kind's (`Layout`).
"""

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from fl_utils.records import RecordError, write_folder


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one kind of computed content is kept.

    Attributes:
      what: its name, in the plural, for errors.
      tables: the tables that are read, a .csv each.
      float_format: of the tables' numbers.
      dtype: column -> type, where it is not to be guessed.
      arrays: name of the .npz that holds the arrays; None for kinds without any.
      verb: what a command does not do where training is forbidden, for errors.
    """

    what: str
    tables: tuple[str, ...]
    float_format: str
    dtype: dict[str, type] | None = None
    arrays: str | None = None
    verb: str = "compute"


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """What a folder holds: tables by name, facts (as JSON), and arrays by name."""

    tables: dict[str, pd.DataFrame]
    facts: dict
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def digest(decided_by: list) -> str:
    """8 hex digits of all that decides a content, for its folder's name: strings, numbers, lists and dicts of them."""
    return hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()[:8]


def load_or_compute(folder: Path, layout: Layout, profile: str, compute: Callable[[], Content]) -> Content:
    """What a folder holds; computed and written first where it is not there.

    Args:
      folder: where it is, or will be.
      layout: its kind.
      profile: for the error's advice.
      compute: gives the content; called at most once.
    Raises:
      RecordError: it is not there, and this command does not compute; or it cannot be written or read.
    """
    if not folder.is_dir():
        if os.environ.get("FL_UTILS_NO_TRAINING"):
            raise RecordError(
                f"There are no {layout.what} {folder.name} in {folder.parent}, and this command does not {layout.verb} "
                f"them. Run `make reproduce PROFILE={profile}`."
            )
        write(folder, layout, compute())
    return load(folder, layout)


def write(folder: Path, layout: Layout, content: Content) -> None:
    """Writes a folder whole or not at all.

    Raises:
      RecordError: the disk is full or the folder cannot be written; nothing is left behind.
    """

    def fill(temporary: Path) -> None:
        for name, table in content.tables.items():
            table.to_csv(temporary / f"{name}.csv", index=False, float_format=layout.float_format)
        if layout.arrays:
            np.savez_compressed(temporary / f"{layout.arrays}.npz", **content.arrays)
        (temporary / "facts.json").write_text(json.dumps(content.facts, indent=2) + "\n")

    write_folder(folder, fill, what=layout.what)


def load(folder: Path, layout: Layout) -> Content:
    """Reads a folder.

    Raises:
      RecordError: a file is missing or unreadable.
    """
    arrays = {}
    try:
        tables = {name: pd.read_csv(folder / f"{name}.csv", dtype=layout.dtype) for name in layout.tables}
        if layout.arrays:
            with np.load(folder / f"{layout.arrays}.npz") as file:
                arrays = {name: file[name] for name in file.files}
        return Content(tables, json.loads((folder / "facts.json").read_text()), arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:  # the last two: of an archive cut short
        raise RecordError(f"{folder} cannot be read: {error}. Delete it and run again.") from error
