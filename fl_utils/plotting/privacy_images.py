"""Reconstructed images beside the originals."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from fl_utils.plotting.images import bare, draw_grey, wrapped
from fl_utils.plotting.page import bottom_label, figure_function, new_figure, top_legend
from fl_utils.plotting.privacy import EMPTY
from fl_utils.plotting.style import WIDTH


@figure_function
def reconstruction_grid(
    originals: np.ndarray, reconstructions: Mapping[str, np.ndarray], names: Sequence[str],
    texts: Mapping[str, Sequence[str]] | None = None, *, empty_label: str = "no reconstruction",
) -> Figure:
    """The originals in the first row, below them what an attacker sees of them, a row a condition.

    Args:
      originals: uint8, or float 0 to 1, [N, H, W].
      reconstructions: condition -> float [N, H, W], 0 to 1; an image that is all NaN: there is none (hatched).
      names: N texts above the columns.
      texts: condition -> N texts below its pictures, e.g. "SSIM 0.86"; "" for none. Conditions may be left out.
      empty_label: what a hatched place means, e.g. "nothing to attack".
    Raises:
      ValueError: shapes, types, values or lengths do not fit; no image or no condition.
    """
    rows, texts = _checked_pictures(originals, reconstructions, names, texts or {})
    words = 1.7
    # Smaller where there are many rows, so that a notebook stays small; but the words below need room.
    side = min((WIDTH - words - 0.1) / len(names), 1.25, max(0.85, 8 / len(rows)))
    texts = {row: [wrapped(text, side * 10 / 8) for text in given] for row, given in texts.items()}
    lines = sum(1 + max(text.count("\n") for text in given) for given in texts.values())
    height = len(rows) * (side + 0.06) + 0.14 * lines + 0.95
    figure = new_figure(height, max(words + len(names) * side, 5.0), w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    axes = figure.subplots(len(rows), len(names), squeeze=False)
    for line, (row, images) in zip(axes, rows.items(), strict=True):
        for number, ax in enumerate(line):
            bare(ax)
            if np.isnan(images[number]).all():
                ax.set(xlim=(0, 1), ylim=(0, 1), aspect=images.shape[1] / images.shape[2])
                ax.add_patch(Rectangle((0, 0), 1, 1, **EMPTY))
            else:
                draw_grey(ax, 255 * images[number][..., np.newaxis])
            if row in texts:
                ax.set_xlabel(texts[row][number], fontsize=8, labelpad=2)
        line[0].set_ylabel(wrapped(row, words - 0.1), rotation=0, ha="right", va="center", fontsize=9)
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(wrapped(str(name), side * 10 / 9), loc="center", fontsize=9, fontweight="normal")
    if any(np.isnan(images).any() for images in rows.values()):
        top_legend(figure, [Patch(label=empty_label, **EMPTY)], handle_length=2)
    bottom_label(figure, "Grey window 0 (black) to 1 (white)")
    return figure


def _checked_pictures(originals, reconstructions, names, texts) -> tuple[dict[str, np.ndarray], dict]:
    """All rows as float 0 to 1, the originals first."""
    figure, originals = "reconstruction_grid", np.asarray(originals)
    if originals.ndim != 3 or len(originals) == 0 or not (originals.dtype == np.uint8 or originals.dtype.kind == "f"):
        found = f"originals is {originals.dtype} {list(originals.shape)}"
        raise ValueError(f"{figure}: {found}, expected uint8 or float [N, H, W], N >= 1.")
    if not reconstructions or "Original" in reconstructions:
        raise ValueError(
            f"{figure}: reconstructions of {', '.join(reconstructions) or 'no condition'}; expected one or more, none "
            "of them named 'Original'."
        )
    rows = {"Original": originals / 255 if originals.dtype == np.uint8 else originals, **reconstructions}
    for row, images in rows.items():
        rows[row] = images = np.asarray(images)
        if images.shape != originals.shape or images.dtype.kind != "f":
            found = f"{images.dtype} {list(images.shape)}"
            raise ValueError(f"{figure}: images of {row!r} are {found}, expected float {list(originals.shape)}.")
        blank = np.isnan(images)
        whole = blank.all(axis=(1, 2)) if row != "Original" else np.zeros(len(images), bool)
        seen = images[~whole]
        if blank[~whole].any() or (seen.size and not (seen.min() >= 0 and seen.max() <= 1)):
            raise ValueError(f"{figure}: images of {row!r} hold values outside 0 to 1, or are NaN in part.")
    if unknown := set(texts) - set(rows):
        raise ValueError(f"{figure}: texts for {', '.join(sorted(unknown))}; known are {', '.join(rows)}.")
    for what, given in {"names": names, **{f"texts of {row!r}": given for row, given in texts.items()}}.items():
        if len(given) != len(originals):
            raise ValueError(f"{figure}: {what} has {len(given)} entries for {len(originals)} images.")
    return rows, dict(texts)
