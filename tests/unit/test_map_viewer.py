"""The interactive cell of notebook 04 without a browser: menus, pictures, and sentences where something is missing."""

import numpy as np
import pytest
from IPython.display import Markdown
from matplotlib.figure import Figure

from fl_utils import map_viewer as module
from fl_utils.config import ExperimentConfig
from fl_utils.data.types import DataError
from fl_utils.experiments import explain_plan, explaining
from fl_utils.experiments.explaining import Explanation
from fl_utils.experiments.run import dataset_of, run
from fl_utils.explain.maps import class_maps, layers_of
from fl_utils.models.classifiers import build_model

SIZE = 28


@pytest.fixture(scope="module")
def explanation(folders):
    """Trained models of all three kinds, without the scores, which the viewer does not need."""
    settings = explain_plan.ExplainSettings((0,), {"phantom_chest": 1}, image_size_px=SIZE, num_images=120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(explain_plan.SETTINGS, "smoke", settings)
        runs = {
            arm: run(explain_plan.explain_config("smoke", "phantom_chest", arm, 0), experiment="explain", progress=False)
            for arm in module.ARMS
        }
        data = dataset_of("phantom_chest", SIZE, 120)
        examples = explaining.test_examples(data, ExperimentConfig(**runs["fedavg"].config), 2)
        facts = {"profile": "smoke", "class_names": list(data.class_names), "synthetic": True, "layer": "relu2"}
        facts |= {"image_size_px": SIZE, "runs": {arm: record.path.name for arm, record in runs.items()}}
        tables = dict.fromkeys(("scores", "agreement", "sanity", "shortcut"))
        yield Explanation("phantom_chest", 0, facts, examples=examples, maps={}, marked_maps={}, **tables)


@pytest.fixture
def viewer(explanation, monkeypatch):
    monkeypatch.delenv("FL_UTILS_STATIC", raising=False)
    viewer = module.map_viewer(explanation)
    yield viewer
    viewer.close()


def test_every_menu_redraws_at_once(viewer):
    assert viewer.models.names == [
        "Centralized (pooled data)", *(f"Hospital {number} alone" for number in range(1, 5)), "Federated (FedAvg)"
    ]
    assert len(viewer.controls["image"].options) == 4 and viewer.controls["layer"].value == "relu2"
    assert len(viewer.controls["layer"].options) > 2
    for field in ("image", "model", "layer", "asked", "cam"):
        control, seen = viewer.controls[field], []
        for option in control.options[-3:]:
            control.value = option[1] if isinstance(option, tuple) else option
            assert viewer.problem.value == "" and bytes(viewer.picture.value).startswith(b"\x89PNG")
            seen.append(bytes(viewer.picture.value))
        assert len(set(seen)) == len(seen) > 1


def test_what_is_shown_is_the_model_that_was_picked(viewer, explanation):
    models = viewer.models
    record = explaining.records_of(explanation)["local"]
    with np.load(module_weights(record, "2")) as arrays:
        weights = [arrays[f"arr_{number}"] for number in range(len(arrays.files))]
    model = build_model("small_cnn", (SIZE, SIZE, 1), 2)
    model.set_weights(weights)
    for index, layer, asked, cam in ((0, "relu2", 0, "grad_cam"), (3, "conv1", 1, "hires_cam")):
        assert layer in layers_of(model)
        found, probabilities = models.map_of(index, "Hospital 3 alone", layer, asked, cam)
        maps = class_maps(model, models.images[index : index + 1], asked, layer=layer, method=cam)[0]
        np.testing.assert_allclose(found, maps / (maps.max() or 1), atol=1e-5)
        assert probabilities.sum() == pytest.approx(1, abs=1e-5) and found.max() in (0, 1)


def module_weights(record, client):
    from fl_utils import paths

    return paths.cache_root() / "models" / f"{record.path.name}_{client}.npz"


def test_a_map_that_cannot_be_made_is_said(viewer, monkeypatch):
    def broken(*choice):
        raise ValueError("The map number 0 holds NaN or <infinity>")

    monkeypatch.setattr(viewer.models, "map_of", broken)
    viewer.controls["image"].value = 1
    assert "cannot be made: The map number 0 holds NaN or &lt;infinity&gt;" in viewer.problem.value
    assert viewer.picture.layout.display == "none"
    monkeypatch.undo()
    viewer.controls["image"].value = 2
    assert viewer.problem.value == "" and viewer.picture.layout.display is None


def test_static_mode_returns_the_first_case(explanation, monkeypatch):
    monkeypatch.setenv("FL_UTILS_STATIC", "1")
    figure = module.map_viewer(explanation)
    assert isinstance(figure, Figure)
    assert figure.get_suptitle().startswith("Federated (FedAvg): Grad-CAM at relu2 for")
    assert "synthetic phantom" in figure.get_suptitle()


@pytest.mark.parametrize("static", ["0", "1"])
def test_missing_weights_and_images_are_said_in_a_sentence(explanation, monkeypatch, tmp_path, static):
    monkeypatch.setenv("FL_UTILS_STATIC", static)
    with monkeypatch.context() as patch:
        patch.setenv("FL_UTILS_CACHE", str(tmp_path))
        found = module.map_viewer(explanation)
        assert isinstance(found, Markdown) and "No maps can be made here. The weights of phantom_chest_" in found.data
        assert "train=True" in found.data

    def nothing(*args):
        raise DataError("Set FL_UTILS_DATA to the folder with brain_mri.")

    monkeypatch.setattr(explaining, "dataset_of", nothing)
    assert module.map_viewer(explanation).data == "No maps can be made here. Set FL_UTILS_DATA to the folder with brain_mri."


def test_weights_are_trained_again_on_demand(explanation, monkeypatch, tmp_path):
    calls = []

    def weights(record, *, progress, train):
        calls.append((record.config["method"], train))
        return {"all": []} if record.config["method"] != "local" else {"0": []}

    monkeypatch.setattr(module, "selected_weights", weights)
    models = module.Models(explanation, train=True)
    assert calls == [("centralized", True), ("local", True), ("fedavg", True)] and len(models.names) == 3
