"""Figures of notebook 04 from small made-up tables and maps: what is drawn, what is refused."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from fl_utils import plotting
from fl_utils.plotting import maps as map_pictures
from tests.unit.made_figures import (
    check_a_missing_column_is_named, check_an_empty_table_is_refused, check_double_rows_are_refused, columns_of,
    legend_texts, on_its_page,
)  # fmt: skip

PANELS = ("Brain MRI", "Chest X-ray")
NAMES = ("centralized", "fedavg", "alone", "untrained")


def agreement():
    rows = [
        (panel, measure, one, other, 0.5, 0.4, 0.6)
        for panel, measure in itertools.product(PANELS, ("rank_correlation", "ssim"))
        for one, other in itertools.product(NAMES, NAMES) if one != other or one == "alone"
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["panel", "measure", "first", "second", "mean", "low", "high"])


def sanity():
    layers = ("logits", "dense", "conv2", "conv1")
    rows = [
        (panel, model, cam, "rank_correlation", depth, layer, 1 - 0.2 * depth, 0.9 - 0.2 * depth, 1.1 - 0.2 * depth)
        for panel, model, cam in itertools.product(PANELS, ("centralized", "fedavg"), ("grad_cam", "score_cam"))
        for depth, layer in enumerate(layers, start=1)
    ]
    return pd.DataFrame(rows, columns=["panel", "model", "cam", "measure", "depth", "layer", "mean", "low", "high"])


def shortcut():
    arms = (("Alone, no marks", "local", 0), ("Alone, marks", "local", 1), ("FedAvg, hospital 1 marks", "fedavg", 1))
    quantities = (("Energy in the box, Grad-CAM", 0.03), ("Rise", 0.0), ("Accuracy", np.nan))
    rows = [
        (panel, *arm, quantity, 0.3, 0.2, 0.4, chance)
        for panel in PANELS for arm in arms for quantity, chance in quantities
    ]  # fmt: skip
    return pd.DataFrame(
        rows, columns=["panel", "label", "method", "marked", "quantity_label", "mean", "low", "high", "chance"]
    )


FIGURES = {
    "agreement_heatmap": (agreement, "panel measure first second mean low high"),
    "sanity_lines": (sanity, "panel model cam measure depth layer mean low high"),
    "shortcut_dots": (shortcut, "panel label method marked quantity_label mean low high chance"),
}


def gallery(num=3, **changes):
    rng = np.random.default_rng(0)
    masks, boxes = np.zeros((2, num, 16, 16), bool)
    masks[1:, 4:9, 5:11], boxes[:, 1:5, 10:14] = True, True
    arguments = {
        "images": rng.integers(0, 256, (num, 16, 16, 1), np.uint8),
        "maps_by_name": {name: rng.random((num, 16, 16)) for name in ("Centralized", "Hospital 1 alone", "FedAvg")},
        "titles": [f"glioma_tumor\nleast certain\np(true) {number}" for number in range(num)],
        "right": [True, False, True][:num], "masks": masks, "boxes": boxes,
    }  # fmt: skip
    return arguments | changes


def view(**changes):
    arguments = {
        "image": np.full((16, 16, 1), 90, np.uint8), "class_map": np.linspace(0, 1, 256).reshape(16, 16),
        "probabilities": [0.2, 0.7, 0.1], "class_names": ["glioma_tumor", "no_tumor", "b"], "asked": 1, "label": 0,
        "title": "FedAvg: Grad-CAM", "mask": np.eye(16, dtype=bool),
    }  # fmt: skip
    return arguments | changes


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_fits_its_page_whole_and_in_part(name):
    frame = FIGURES[name][0]()
    for one in (frame, frame[frame["panel"] == PANELS[0]], frame.assign(low=np.nan, high=np.nan)):
        assert on_its_page(getattr(plotting, name)(one))


@pytest.mark.parametrize(("name", "column"), columns_of(FIGURES))
def test_a_missing_column_is_named(name, column):
    check_a_missing_column_is_named(name, FIGURES[name][0](), column)


@pytest.mark.parametrize("name", FIGURES)
def test_empty_tables_and_double_rows_are_refused(name):
    check_an_empty_table_is_refused(name, FIGURES[name][0]())
    check_double_rows_are_refused(name, FIGURES[name][0]())


def test_the_measure_is_chosen_and_must_be_there():
    frame = agreement()
    frame.loc[frame["measure"] == "ssim", "mean"] = 0.55
    figure = plotting.agreement_heatmap(frame, measure="ssim")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count("0.55") == 4 * 3 + 1 and "[0.40, 0.60]" in texts and "0.50" not in texts
    assert figure.axes[-1].get_xlabel().startswith("SSIM of two maps")
    for draw, table in ((plotting.agreement_heatmap, frame), (plotting.sanity_lines, sanity())):
        with pytest.raises(ValueError, match="no rows"):
            draw(table, measure="energy")


def test_a_pair_without_a_row_stays_blank():
    figure = plotting.agreement_heatmap(agreement())
    values = figure.axes[0].images[0].get_array()
    assert np.ma.getmaskarray(values).diagonal().tolist() == [True, True, False, True]


def test_sanity_has_a_line_a_cam_in_its_look():
    figure = plotting.sanity_lines(sanity())
    assert [ax.get_title(loc="left").replace("\n", " ") for ax in figure.axes] == [
        f"{panel}: {model}" for panel in PANELS for model in ("Centralized", "Federated")
    ]
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 4]
    assert [line.get_marker() for line in lines] == [plotting.look(cam).marker for cam in ("grad_cam", "score_cam")]
    assert [line.get_ydata()[-1] for line in lines] == pytest.approx([0.2, 0.2])
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["logits", "dense", "conv2", "conv1"]
    with pytest.raises(ValueError, match="no look for 'foo_cam'"):
        plotting.sanity_lines(sanity().replace({"cam": {"score_cam": "foo_cam"}}))


def test_arms_without_marks_are_hollow():
    figure = plotting.shortcut_dots(shortcut())
    dots = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert [to_hex(dot.get_markerfacecolor()) == "#ffffff" for dot in dots] == [True, False, False]
    assert legend_texts(figure) == ["mean and 95 % interval over seeds", "no hospital marks", "chance, or no effect"]
    assert [ax.get_xlabel() for ax in figure.axes[-3:]] == ["Energy in the box\nGrad-CAM", "Rise", "Accuracy"]
    chance = [line for line in figure.axes[0].lines if line.get_xdata()[0] == 0.03]
    assert len(chance) == 1 and legend_texts(plotting.shortcut_dots(shortcut().assign(chance=np.nan)))[-1] == "no hospital marks"
    with pytest.raises(ValueError, match="no look for 'fedfoo'"):
        plotting.shortcut_dots(shortcut().replace({"method": {"local": "fedfoo"}}))


def test_the_gallery_has_image_map_and_overlay_a_case():
    arguments = gallery()
    figure = plotting.map_gallery(**arguments)
    assert on_its_page(figure) and legend_texts(figure) == ["right", "wrong", "lesion", "marker"]
    pictures = [ax for ax in figure.axes if ax.images]
    assert len(pictures) == 3 * 7 and figure.axes[-1].get_xlabel() == "Class activation, share of the map's maximum"
    assert [ax.get_title().replace("\n", " ") for ax in pictures[:3]] == ["image", "Centralized map", "Centralized overlay"]
    maps = arguments["maps_by_name"]["FedAvg"]
    np.testing.assert_array_equal(pictures[7 + 5].images[0].get_array(), maps[1])
    assert pictures[7 + 5].images[0].get_clim() == (0, 1)
    # The overlay: the grey image, and on it the map's colours, the more opaque the higher.
    below, above = pictures[7 + 6].images
    np.testing.assert_array_equal(below.get_array(), arguments["images"][1, ..., 0])
    np.testing.assert_allclose(above.get_array()[..., 3], map_pictures.STRONGEST * maps[1])
    # No lesion in the first case: no outline; in the second one on image and overlays, not on the maps.
    outlines = [len(ax.collections) > 0 for ax in pictures[:14]]
    assert outlines == [False] * 7 + [True, False] * 3 + [True]


def test_a_gallery_without_masks_and_a_map_that_is_zero():
    arguments = gallery(num=1, masks=None, boxes=None)
    arguments["maps_by_name"] = {"FedAvg": np.zeros((1, 16, 16))}
    figure = plotting.map_gallery(**arguments)
    assert legend_texts(figure) == ["right"] and on_its_page(figure)
    assert [text.get_text() for text in figure.axes[1].texts] == ["all zero"]
    figure = plotting.map_gallery(**arguments | {"right": None})
    assert not figure.legends and not figure.axes[0].patches


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": np.zeros((3, 16, 16, 1))}, r"images is float64 \[3, 16, 16, 1\], expected uint8"),
        ({"maps_by_name": {}}, "maps_by_name is empty"),
        ({"maps_by_name": {"a": np.zeros((2, 16, 16))}}, r"maps of 'a' are \[2, 16, 16\], expected \[3, 16, 16\]"),
        ({"maps_by_name": {"a": np.full((3, 16, 16), 1.5)}}, "outside 0 to 1; divide each by its maximum"),
        ({"maps_by_name": {"a": np.full((3, 16, 16), np.nan)}}, "outside 0 to 1"),
        ({"masks": np.zeros((3, 16, 16))}, r"masks is float64 \[3, 16, 16\], expected bool"),
        ({"boxes": np.zeros((3, 8, 8), bool)}, r"boxes is bool \[3, 8, 8\]"),
        ({"titles": ["one"]}, "1 titles and 3 verdicts for 3 images"),
    ],
)
def test_a_gallery_that_does_not_fit_is_refused(changes, said):
    with pytest.raises(ValueError, match=f"map_gallery: .*{said}"):
        plotting.map_gallery(**gallery(**changes))


def test_the_view_marks_the_true_and_the_asked_class():
    figure = plotting.map_view(**view())
    assert on_its_page(figure) and figure.get_suptitle() == "FedAvg: Grad-CAM"
    bars = figure.axes[3]
    assert [patch.get_width() for patch in bars.patches] == [0.2, 0.7, 0.1]
    assert [bool(patch.get_hatch()) for patch in bars.patches] == [False, True, False]
    names = [tick.get_text().replace("\n", " ") for tick in bars.get_yticklabels()]
    assert names == ["glioma tumor (true)", "no tumor", "b"]
    with pytest.raises(ValueError, match="2 probabilities, classes 1 and 0, for 3 names"):
        plotting.map_view(**view(probabilities=[0.5, 0.5]))
    with pytest.raises(ValueError, match="classes 3 and 0"):
        plotting.map_view(**view(asked=3))


def test_colours_of_maps_rise_in_lightness():
    """So that a map reads without colour vision, and on a grey print."""
    from matplotlib import colormaps
    from skimage.color import rgb2lab

    lightness = rgb2lab(colormaps[map_pictures.COLOURS](np.linspace(0, 1, 50))[np.newaxis, :, :3])[0, :, 0]
    assert (np.diff(lightness) > 0).all() and np.ptp(lightness) > 60
