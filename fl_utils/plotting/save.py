"""Writes figures and tables to results/: the picture, its data and its caption, whole or not at all."""

import os
import re
import shutil
import tempfile
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from fl_utils import paths
from fl_utils.plotting.page import NotebookFigure, bottom_label, render
from fl_utils.plotting.style import GREY, style

DPI = 200
SYNTHETIC_LABEL = "synthetic phantoms"
_SYNTHETIC_CAPTION = "Made from synthetic phantoms: says nothing about real images."
_LABEL_LINE = 0.22  # inches


class FigureError(RuntimeError):
    """A figure or table cannot be written; the text names it, the folder and the reason."""


def save_figure(
    fig: Figure, name: str, *, data: pd.DataFrame, caption: str, profile: str, synthetic: bool
) -> Path:
    """Writes `figures/<name>` below the profile's results: .png, .svg, .csv (data) and .md (caption).

    The same figure gives the same bytes, so that redrawing shows as no change. Files appear only
    when all four could be written. A synthetic figure is labelled inside the picture, for good:
    the notebook that shows it afterwards shows the label, too.

    Args:
      fig: what a function of this package returned.
      name: lower-case letters, digits and "_", e.g. "fig02_headline".
      data: what is plotted; written with 6 significant digits, without the index.
      caption: Markdown; its first sentence is the figure's title.
      profile: whose results, e.g. "paper".
      synthetic: drawn from phantoms.
    Returns:
      Path of the .png.
    Raises:
      ValueError: phantoms in profile "paper"; a bad name; no data; no caption.
      FigureError: the folder cannot be written, or the disk is full; what was there stays.
    """
    _check(name, data, caption, profile, synthetic)
    if synthetic:
        _label_synthetic(fig)
    files = {
        f"{name}.png": render(fig, "png", DPI),
        f"{name}.svg": render(fig, "svg", DPI),
        f"{name}.csv": _csv(data),
        f"{name}.md": _caption(caption, synthetic).encode(),
    }
    folder = paths.results_root(profile) / "figures"
    _write_all(folder, files)
    return folder / f"{name}.png"


def save_table(df: pd.DataFrame, name: str, *, caption: str, profile: str, synthetic: bool) -> Path:
    """Writes `tables/<name>` below the profile's results: .csv, and .md with caption and table.

    Args:
      df: the table as it is read: the index is left out, floats get 3 decimals in the .md and
        6 significant digits in the .csv; round beforehand for less.
      name, caption, profile, synthetic: see `save_figure`.
    Returns:
      Path of the .md.
    Raises:
      ValueError, FigureError: see `save_figure`.
    """
    _check(name, df, caption, profile, synthetic)
    text = f"{_caption(caption, synthetic)}\n{github_table(df)}"
    folder = paths.results_root(profile) / "tables"
    _write_all(folder, {f"{name}.csv": _csv(df), f"{name}.md": text.encode()})
    return folder / f"{name}.md"


def github_table(df: pd.DataFrame) -> str:
    """The table in GitHub's Markdown; numbers to the right, 3 decimals, "–" where there is none."""
    rule = ["---:" if pd.api.types.is_numeric_dtype(dtype) else "---" for dtype in df.dtypes]
    body = [[_cell(value) for value in row] for row in df.itertuples(index=False, name=None)]
    rows = [[_cell(column) for column in df.columns], rule, *body]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(value) -> str:
    if value is None or pd.isna(value):
        return "–"
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _check(name: str, data: pd.DataFrame, caption: str, profile: str, synthetic: bool) -> None:
    if synthetic and profile == "paper":
        raise ValueError(
            f"{name}: made from phantoms, and profile 'paper' holds results on real data only. "
            "Use profile 'quick' or 'smoke', or give real data."
        )
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"{name!r} is no name for a figure or table; expected lower-case letters, digits and '_'.")
    if len(data.columns) == 0 or len(data) == 0:
        raise ValueError(f"{name}: the data has no rows or no columns; hand over the table that is shown.")
    if not caption.strip():
        raise ValueError(f"{name}: the caption is empty; it is where the title stands.")


def _caption(caption: str, synthetic: bool) -> str:
    return f"{caption.strip()} {_SYNTHETIC_CAPTION}\n" if synthetic else f"{caption.strip()}\n"


def _csv(data: pd.DataFrame) -> bytes:
    return data.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()


def _label_synthetic(fig: Figure) -> None:
    """Writes the label below everything else; the figure grows by a line, so that it covers nothing."""
    label = fig.get_supxlabel()
    if SYNTHETIC_LABEL in label:
        return
    fig.set_figheight(fig.get_figheight() + _LABEL_LINE)
    with style():
        if label:
            bottom_label(fig, f"{label}\n{SYNTHETIC_LABEL}")
        else:
            fig.supxlabel(SYNTHETIC_LABEL, x=0.99, ha="right", fontsize=10, fontstyle="italic", color=GREY)
    if isinstance(fig, NotebookFigure):
        fig.lay_out()


def _write_all(folder: Path, files: dict[str, bytes]) -> None:
    """Writes all files to temporary names first; a failure leaves what was there before."""
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        for name in files:
            os.replace(temporary / name, folder / name)
    except OSError as error:
        raise FigureError(
            f"{', '.join(files)} could not be written to {folder}: {error.strerror or error}. "
            "Free some space or set FL_UTILS_RESULTS to another folder, then run again."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
