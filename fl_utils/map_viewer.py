"""The interactive cell of notebook 04: pick an image, a model, a layer, a class and a kind of map.

    from fl_utils.map_viewer import map_viewer
    map_viewer(explanation)

TensorFlow is loaded when the first map is made.
"""

import functools
import html
import os

import ipywidgets as widgets
import numpy as np
from IPython.display import Markdown
from matplotlib.figure import Figure

from fl_utils.data.types import DataError
from fl_utils.experiments.explain_plan import CAM, CAMS
from fl_utils.experiments.explain_report import CAM_LABELS
from fl_utils.experiments.explaining import Explanation, images_of, records_of
from fl_utils.experiments.run import selected_weights
from fl_utils.explain.baselines import normalised
from fl_utils.plotting.maps import map_view
from fl_utils.plotting.page import render
from fl_utils.plotting.style import RC, look
from fl_utils.records import RecordError

#: Of these arms a model can be picked.
ARMS = ("centralized", "local", "fedavg")


def map_viewer(explanation: Explanation, *, train: bool = False) -> "MapViewer | Figure | Markdown":
    """Image, map and overlay, redrawn at once when a menu is used, with what the model says.

    Args:
      explanation: whose images and models.
      train: True to train models again whose weights are not in the cache, which takes as long as it took.
    Returns:
      The widgets; where the environment variable FL_UTILS_STATIC is 1 (notebooks executed without a front end), the
      picture of the first case; where images or weights are not at hand, a sentence that says so.
    """
    try:
        models = Models(explanation, train=train)
        if os.environ.get("FL_UTILS_STATIC") == "1":
            return view(models, 0, models.names[-1], models.default_layer, int(models.labels[0]), CAM)
        return MapViewer(models)
    except DataError as error:
        return Markdown(f"No maps can be made here. {error}")
    except RecordError as error:
        return Markdown(f"No maps can be made here. {error} `map_viewer(explanation, train=True)` does so, too.")


class Models:
    """The trained models of an explanation and its images, behind the widgets.

    Attributes:
      images: uint8 [N, H, W, C]; labels: int [N]; masks: bool [N, H, W] or None.
      names: what the models are called.
      layers: of all models, from the image to the logits.
      default_layer: the one whose maps are scored.
    """

    def __init__(self, explanation: Explanation, *, train: bool):
        from fl_utils.explain.maps import layers_of
        from fl_utils.learning.local import make_predictor
        from fl_utils.models.classifiers import build_model

        self.explanation, self.class_names = explanation, explanation.facts["class_names"]
        self.images, self.labels, self.masks = images_of(explanation)
        self._weights = {}
        records = records_of(explanation)
        for arm in ARMS:
            for client, weights in selected_weights(records[arm], progress=train, train=train).items():
                name = look(arm).label if client == "all" else f"Hospital {int(client) + 1} alone"
                self._weights[name] = weights
        self._model = build_model(records["fedavg"].config["model"], self.images.shape[1:], len(self.class_names))
        self._predict = make_predictor(self._model)
        self.names, self.layers = list(self._weights), list(layers_of(self._model))
        self.default_layer = explanation.facts["layer"]

    @functools.lru_cache(maxsize=8)
    def _mapper(self, layer: str, cam: str):
        from fl_utils.explain.maps import make_mapper

        return make_mapper(self._model, method=cam, layer=layer)

    def map_of(self, index: int, name: str, layer: str, asked: int, cam: str) -> tuple[np.ndarray, np.ndarray]:
        """The map [H, W] of one image, divided by its maximum, and the probabilities [K].

        Raises:
          ValueError: see `explain.maps.make_mapper`.
        """
        self._model.set_weights(self._weights[name])
        image = self.images[index : index + 1]
        maps, _ = normalised(self._mapper(layer, cam)(image, asked))
        return maps[0], self._predict(image)[0]


def view(models: Models, index: int, name: str, layer: str, asked: int, cam: str) -> Figure:
    """The picture of one choice."""
    class_map, probabilities = models.map_of(index, name, layer, asked, cam)
    words = models.class_names[asked].replace("_", " ")
    return map_view(
        models.images[index], class_map, probabilities, models.class_names, asked=asked,
        label=int(models.labels[index]),
        title=f"{name}: {CAM_LABELS[cam]} at {layer} for {words!r}" + (
            "   (synthetic phantom)" if models.explanation.facts["synthetic"] else ""
        ),
        mask=None if models.masks is None else models.masks[index],
    )


class MapViewer(widgets.VBox):
    """Menus above a picture."""

    def __init__(self, models: Models):
        self.models = models
        cases = [
            (f"{number}: {models.class_names[label]} (image {example} of the data set)", number)
            for number, (label, example) in enumerate(zip(models.labels, models.explanation.examples, strict=True))
        ]
        classes = [(name, number) for number, name in enumerate(models.class_names)]
        self.controls = {
            "image": _menu("Image", cases, 0),
            "model": _menu("Model", models.names, models.names[-1]),
            "layer": _menu("Layer", models.layers, models.default_layer),
            "asked": _menu("Class", classes, int(models.labels[0])),
            "cam": _menu("Map", [(CAM_LABELS[cam], cam) for cam in CAMS], CAM),
        }
        self.picture = widgets.Image(format="png", layout={"max_width": "100%"})
        self.problem = widgets.HTML()
        for field, control in self.controls.items():
            control.add_class(f"fl-map-{field}")
            control.observe(lambda _: self.draw(), names="value")
        menus = list(self.controls.values())
        columns = widgets.HBox([widgets.VBox(menus[:2]), widgets.VBox(menus[2:])])
        super().__init__([columns, self.problem, self.picture])
        self.add_class("fl-map-viewer")
        self.draw()

    def draw(self) -> None:
        """Redraws the picture, or says in its place why it cannot be."""
        image, model, layer, asked, cam = (control.value for control in self.controls.values())
        try:
            figure = view(self.models, image, model, layer, asked, cam)
            self.picture.value = render(figure, "png", RC["figure.dpi"])
            text, shown = "", None
        except ValueError as error:
            text, shown = f"This map cannot be made: {error}", "none"
        self.problem.value, self.picture.layout.display = html.escape(text), shown


def _menu(words: str, options: list, value) -> widgets.Dropdown:
    return widgets.Dropdown(
        options=options, value=value, description=words, style={"description_width": "5em"}, layout={"width": "30em"}
    )
