"""The interactive cell of notebook 03: sliders that redraw a partition at once, and a small run that is watched live.

    from fl_utils import interactive
    interactive.playground()

The state is `experiments.live.Playground`, the pictures are those of `plotting.live`; here are the widgets only.
"""

import asyncio
import dataclasses
import html
import math
import os

import ipywidgets as widgets
from matplotlib.figure import Figure

from fl_utils.config import METHOD_LABELS, PARTITION_FIELD, ConfigError
from fl_utils.data.partition import PartitionError
from fl_utils.data.types import DataError
from fl_utils.experiments.live import BOUNDS, METHODS, PARTITIONS, LiveSettings, Playground
from fl_utils.plotting.live import live_curves, live_partition
from fl_utils.plotting.page import render
from fl_utils.plotting.style import RC

PLAY = "synthetic phantoms, play: no result"
_open: "PlaygroundBox | None" = None


def playground(
    profile: str = "quick", dataset: str = "phantom_brain", **start: str | float
) -> "PlaygroundBox | Figure":
    """Sliders over partitions and algorithms, with a live training run; nothing is written into results/.

    The box of an earlier call is closed, and its run ended: one machine trains one run at a time.

    Args:
      profile: sets the size of the data, see `experiments.live.SIZES`.
      dataset: phantoms of the catalogue.
      **start: fields of `LiveSettings`: where the sliders stand at first.
    Returns:
      The widgets; or, where the environment variable FL_UTILS_STATIC is 1 (notebooks executed without a front end,
      whose outputs must hold no widgets), the picture of the first partition.
    Raises:
      ConfigError: no such profile, no such phantoms, or a value that no slider has.
      PartitionError: static only; the partition cannot be made.
    """
    global _open
    settings, play = LiveSettings(**start), Playground(profile, dataset)
    if os.environ.get("FL_UTILS_STATIC") == "1":
        return partition_figure(play, settings, note=f"{PLAY}; open this notebook in JupyterLab to move the sliders")
    if _open is not None:
        _open.close()
    _open = PlaygroundBox(play, settings)
    return _open


def partition_figure(play: Playground, settings: LiveSettings, note: str = PLAY) -> Figure:
    """The partition as a heat map with its heterogeneity. Raises: see `Playground.partition`."""
    counts, numbers, images = play.partition(settings)
    words = (
        f"Classes: mean Jensen-Shannon distance {numbers['js_distance']:.2f} (0 alike, 1 no class in common).  "
        f"Sizes: Gini {numbers['size_gini']:.2f} (0 equal)."
    )
    return live_partition(counts, images, title=f"Training images: {settings.skew}", numbers=words, note=note)


class PlaygroundBox(widgets.VBox):
    """The widgets around a `Playground`.

    All drawing happens on the kernel's event loop, also when the training thread asks for it: matplotlib's style is
    global, and a cell that draws meanwhile must not see ours.
    """

    def __init__(self, play: Playground, settings: LiveSettings):
        self.play, self._closed = play, False
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:  # plain Python: the training thread draws itself
            self._loop = None
        play.on_change = self._on_change
        self.controls = _controls(settings, play.num_classes)
        self.partition, self.curves = _image("fl-partition"), _image("fl-curves")
        self.problem, self.status = widgets.HTML(), widgets.HTML()
        self.status.add_class("fl-status")
        self.buttons = {
            name: widgets.Button(description=name, tooltip=tip, layout={"width": "auto"})
            for name, tip in (
                ("Train", "one run with these settings"),
                ("Train FedAvg on IID", "the same with even hospitals, as a reference"),
                ("Stop", "ends the run after its round"),
                ("Clear", "forgets the curves"),
            )
        }
        self.buttons["Train"].button_style = "primary"
        self.buttons["Train"].on_click(lambda _: self._train(self.settings))
        self.buttons["Train FedAvg on IID"].on_click(
            lambda _: self._train(dataclasses.replace(self.settings, partition="iid", method="fedavg"))
        )
        self.buttons["Stop"].on_click(lambda _: self._stop())
        self.buttons["Clear"].on_click(lambda _: self._clear())
        for control in self.controls.values():
            control.observe(lambda _: self.draw_partition(), names="value")
        half = len(self.controls) // 2 + 1
        columns = [widgets.VBox(list(self.controls.values())[part]) for part in (slice(half), slice(half, None))]
        super().__init__(
            [
                widgets.HBox(columns), self.problem, self.partition,
                widgets.HBox(list(self.buttons.values())), self.status, self.curves,
            ]
        )
        self.add_class("fl-playground")
        self.draw_partition()
        self.draw_curves()

    @property
    def settings(self) -> LiveSettings:
        """Where the controls stand."""
        return LiveSettings(**{field: control.value for field, control in self.controls.items()})

    def draw_partition(self) -> None:
        """Redraws the partition, or says in its place why it cannot be."""
        field = PARTITION_FIELD.get(self.controls["partition"].value)
        self.controls["alpha"].disabled = field not in ("dirichlet_alpha", "quantity_alpha")
        self.controls["classes_per_client"].disabled = field != "classes_per_client"
        try:
            self.partition.value = _png(partition_figure(self.play, self.settings))
            text, shown = "", None
        except (ConfigError, DataError, PartitionError) as error:
            text, shown = f"This partition cannot be made: {error}", "none"
        self.problem.value, self.partition.layout.display = html.escape(text), shown

    def draw_curves(self) -> None:
        """Brings curves, status and buttons up to date."""
        if self._closed:
            return
        running = self.play.running
        for name, button in self.buttons.items():
            button.disabled = running if name.startswith("Train") else not running if name == "Stop" else False
        self.status.value = html.escape(self.play.status)
        total_rounds = self.controls["total_rounds"].value
        self.curves.value = _png(live_curves(self.play.curves, total_rounds=total_rounds, note=PLAY))

    def close(self) -> None:
        """Ends the run after its round, and takes the widgets away."""
        self._closed = True
        self.play.stop()
        super().close()

    def _train(self, settings: LiveSettings) -> None:
        self.play.train(settings)
        self.draw_curves()

    def _stop(self) -> None:
        self.play.stop()
        if self.play.running:
            self.status.value = "Stopping after this round ..."

    def _clear(self) -> None:
        self.play.clear()
        self.draw_curves()

    def _on_change(self) -> None:
        if self._loop is None:
            self.draw_curves()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.draw_curves)


def _controls(settings: LiveSettings, num_classes: int) -> dict[str, widgets.Widget]:
    """One control a field of `LiveSettings`, in the order in which they stand."""

    def slider(field: str, words: str, high: float | None = None) -> widgets.IntSlider:
        low, highest = BOUNDS[field]
        return widgets.IntSlider(
            getattr(settings, field), min=low, max=min(high or highest, highest), description=words, **_WORDS
        )

    # Steps of a tenth, from a whole one, so that 0.1, 1 and 10 can be set.
    low, high = (round(math.log10(end), 1) for end in BOUNDS["alpha"])
    controls = {
        "partition": widgets.Dropdown(
            options=[(words, name) for name, words in PARTITIONS.items()], value=settings.partition,
            description="Partition", **_WORDS,
        ),
        "alpha": widgets.FloatLogSlider(
            settings.alpha, base=10, min=low, max=high, step=0.1, readout_format=".2f",
            description="alpha", **_WORDS,
        ),
        "classes_per_client": slider("classes_per_client", "Classes each", num_classes),
        "num_clients": slider("num_clients", "Hospitals"),
        "method": widgets.Dropdown(
            options=[(METHOD_LABELS[name], name) for name in METHODS], value=settings.method,
            description="Algorithm", **_WORDS,
        ),
        "local_epochs": slider("local_epochs", "Local epochs"),
        "total_rounds": slider("total_rounds", "Rounds"),
    }
    for field, control in controls.items():
        control.add_class(f"fl-{field}")
    return controls


_WORDS = {"style": {"description_width": "8em"}, "layout": {"width": "26em"}}


def _image(name: str) -> widgets.Image:
    image = widgets.Image(format="png", layout={"max_width": "100%"})
    image.add_class(name)
    return image


def _png(figure: Figure) -> bytes:
    return render(figure, "png", RC["figure.dpi"])
