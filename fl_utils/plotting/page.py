"""The figure itself: it shows itself in a notebook, places its parts, and becomes a file."""

import functools
import io
from collections.abc import Callable

from matplotlib.figure import Figure
from PIL import Image

from fl_utils.plotting.style import RC, WIDTH, style


class NotebookFigure(Figure):
    """A matplotlib Figure that a notebook shows when it is a cell's last expression, and only then.

    pyplot is not used: it would keep every figure open and show it a second time.
    """

    def lay_out(self) -> None:
        """Places all parts so that they keep clear of each other; again after something was added.

        matplotlib's own way is to do so at every draw, starting from the last one, so that a file
        would depend on what was drawn before.
        """
        self.set_layout_engine(self.engine)
        with style():
            for _ in range(3):  # Ticks follow the size of the axes, and the size follows the ticks.
                self.draw_without_rendering()
        self.set_layout_engine("none")

    def _repr_png_(self) -> bytes:
        """The picture in 256 colours: a third of the bytes, so that a notebook of many figures stays small."""
        picture = Image.open(io.BytesIO(render(self, "png", dpi=RC["figure.dpi"]))).convert("RGB")
        file = io.BytesIO()
        picture.quantize(256, dither=Image.Dither.NONE).save(file, format="png", optimize=True)
        return file.getvalue()


def render(figure: Figure, file_format: str, dpi: float) -> bytes:
    """The figure as a file's content; the same bytes every time.

    Args:
      figure: any matplotlib figure.
      file_format: "png" or "svg".
      dpi: dots per inch of a PNG.
    """
    # Dates and versions would change the file when nothing has changed.
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[file_format]
    file = io.BytesIO()
    with style():
        figure.savefig(file, format=file_format, dpi=dpi, metadata=metadata)
    return file.getvalue()


def new_figure(height: float, width: float = WIDTH, **pads) -> NotebookFigure:
    """An empty figure, in inches; `pads` as in matplotlib's constrained layout."""
    figure = NotebookFigure(figsize=(width, height), layout="constrained")
    figure.engine = figure.get_layout_engine()
    figure.engine.set(**{"w_pad": 0.08, "h_pad": 0.06, "wspace": 0.04, "hspace": 0.06} | pads)
    return figure


def figure_function(function: Callable[..., NotebookFigure]) -> Callable[..., NotebookFigure]:
    """Decorates a function that draws a figure: it does so in the suite's style, and lays it out."""

    @functools.wraps(function)
    def in_style(*args, **kwargs):
        with style():
            figure = function(*args, **kwargs)
            figure.lay_out()
        return figure

    return in_style


def top_legend(figure: Figure, handles: list, handle_length: float = 3) -> None:
    """A legend above the panels, in as few rows as the width allows.

    Below the panels is the place of the label for synthetic data.
    """
    for rows in range(1, len(handles) + 1):
        legend = figure.legend(
            handles=handles, loc="outside upper center", ncols=-(-len(handles) // rows), handlelength=handle_length
        )
        if legend.get_window_extent().width <= 0.98 * figure.bbox.width or rows == len(handles):
            return
        legend.remove()


def bottom_label(figure: Figure, text: str) -> None:
    """One label below all panels."""
    figure.supxlabel(text, fontsize=11)
