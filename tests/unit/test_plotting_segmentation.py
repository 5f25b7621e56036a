"""Figures of notebook 05 from small made-up arrays and tables: what is drawn, what is refused."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex, to_rgba
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from fl_utils import plotting
from fl_utils.data.overview import windowed
from fl_utils.data.prepare import PLANES, as_seen, slices_of
from fl_utils.data.volumes import Volume
from fl_utils.plotting import slices as slice_pictures
from fl_utils.plotting.segmentation import OPACITY, SegmentedCase
from fl_utils.plotting.segmentation_scores import agreement_limits
from tests.unit.made_figures import (
    check_a_missing_column_is_named, check_an_empty_table_is_refused, check_double_rows_are_refused, legend_texts,
    on_its_page,
)  # fmt: skip

NAMES = ("background", "anterior_part", "posterior")
SHAPE, SPACING = (12, 16, 8), (1.0, 0.5, 3.0)


def made_case(**changes):
    """A box of two classes in noise; the prediction of "U-Net" is shifted by a voxel, that of "exact" is the truth."""
    rng = np.random.default_rng(0)
    truth = np.zeros(SHAPE, np.uint8)
    truth[3:8, 5:9, 2:5], truth[3:8, 9:12, 2:5] = 1, 2
    image = rng.normal(size=SHAPE).astype(np.float32) + 0.01
    arguments = {
        "modalities": {"t1": image, "flair": image[::-1].copy()}, "truth": truth,
        "predictions": {"U-Net": np.roll(truth, 1, axis=0), "exact": truth}, "spacing_mm": SPACING,
        "class_names": NAMES,
    }
    return SegmentedCase(**arguments | changes)


def outlines(ax):
    """(colour, dashed, corners [P, 2]) of every outline."""
    return [
        (
            to_hex(drawn.get_edgecolor()[0]).upper(), drawn.get_linestyles()[0][1] is not None,
            np.concatenate([path.vertices for path in drawn.get_paths()]),
        )
        for drawn in ax.collections
    ]


# --- slices ---


def test_the_case_starts_at_the_slice_with_the_largest_area():
    case = made_case()
    assert [case.fullest_slice(plane) for plane in PLANES] == [2, 5, 3]
    truth = case.truth.copy()
    truth[0, :, 7] = 1  # alone in its slice, and smaller
    truth[1:11, 1:15, 4] = 1
    assert made_case(truth=truth).fullest_slice("axial") == 4
    assert made_case(truth=np.zeros(SHAPE, np.uint8)).fullest_slice("coronal") == 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"truth": np.zeros((4, 4), np.uint8)}, r"truth \[4, 4\], 2 modalities, 2 predictions; expected truth"),
        ({"modalities": {}}, "0 modalities"),
        ({"predictions": {}}, "0 predictions"),
        ({"spacing_mm": (1, 1)}, r"spacing_mm is \(1, 1\)"),
        ({"spacing_mm": (1, 0, 1)}, "three numbers above 0"),
        ({"modalities": {"t2": np.zeros(SHAPE, np.uint8)}}, r"modality 't2' is uint8 \[12, 16, 8\], expected float"),
        ({"modalities": {"t2": np.zeros((1, 2, 3))}}, r"expected float \[12, 16, 8\]"),
        ({"truth": np.zeros(SHAPE, int)}, "truth is int64 .*expected uint8"),
        ({"predictions": {"a": np.zeros((1, 2, 3), np.uint8)}}, r"prediction 'a' is uint8 \[1, 2, 3\]"),
        ({"truth": np.full(SHAPE, 3, np.uint8)}, r"truth holds code 3; expected 0 to 2 \(background, anterior_part"),
    ],
)
def test_a_case_that_does_not_fit_is_refused(changes, said):
    with pytest.raises(ValueError, match=f"SegmentedCase: .*{said}"):
        made_case(**changes)


#: Where the patient's right front top stands, in the words of `slices_of`: in the upper half, in the left half.
WHERE = {"axial": "front at the top, right at the left", "coronal": "top at the top, right at the left",
         "sagittal": "top at the top, front at the left"}  # fmt: skip


@pytest.mark.parametrize("plane", WHERE)
def test_right_front_top_is_drawn_at_the_upper_left(plane):
    truth = np.zeros(SHAPE, np.uint8)
    truth[-4:, -4:, -4:] = 1  # RAS: right, front and top are at the end of the axes
    case = made_case(truth=truth, predictions={"U-Net": truth})
    ax = plotting.slice_view(case, plane=plane, number=case.fullest_slice(plane)).axes[0]
    height, width = ax.images[0].get_array().shape
    corners = outlines(ax)[0][2]
    assert corners[:, 0].max() < 4 <= width / 2 and corners[:, 1].max() < 4 <= height / 2, WHERE[plane]
    assert ax.get_xlim()[0] < ax.get_xlim()[1] and ax.get_ylim()[0] > ax.get_ylim()[1]  # row 0 is above
    letters = [text.get_text() for text in ax.texts if text.get_text() in "RAS"]
    assert letters == {"axial": ["R", "A"], "coronal": ["R", "S"], "sagittal": ["A", "S"]}[plane]


@pytest.mark.parametrize("plane", PLANES)
def test_the_view_is_turned_as_the_slices_of_training(plane):
    """The same pixels as `slices_of`, where that has nothing to resize or pad."""
    rng = np.random.default_rng(1)
    image, mask = rng.normal(size=(8, 8, 8, 1)).astype(np.float32), rng.integers(0, 3, (8, 8, 8), np.uint8)
    expected = slices_of(Volume(image, mask, np.ones(3), "a"), plane, 8)
    np.testing.assert_array_equal(as_seen(mask, plane), expected["mask"])
    np.testing.assert_allclose(as_seen(image, plane), expected["image"], atol=2e-3)
    case = SegmentedCase({"t1": image[..., 0]}, mask, {"U-Net": mask}, (1, 1, 1), NAMES)
    ax = plotting.slice_view(case, plane=plane, number=5).axes[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), windowed(as_seen(image[..., 0], plane)[5])[..., 0])


@pytest.mark.parametrize("plane", PLANES)
def test_aspect_and_scale_bar_follow_the_spacing(plane):
    figure = plotting.slice_view(made_case(), plane=plane, number=4)
    ax, (_, rows, columns) = figure.axes[0], PLANES[plane]
    figure.draw_without_rendering()
    box = ax.get_window_extent()
    size_mm = [SHAPE[axis] * SPACING[axis] for axis in (rows, columns)]
    assert box.height / box.width == pytest.approx(size_mm[0] / size_mm[1], rel=1e-6)
    (bar,) = [artist for artist in ax.artists if isinstance(artist, AnchoredSizeBar)]
    length_mm = float(bar.txt_label.get_text().split()[0])
    assert bar.size_bar.get_children()[0].get_width() * SPACING[columns] == pytest.approx(length_mm)
    assert length_mm <= 0.35 * size_mm[1]


def test_true_outlines_are_solid_predicted_ones_dashed_in_the_colour_of_their_class():
    case = made_case()
    figure = plotting.slice_view(case, plane="axial", number=3, scores={"anterior_part": 0.8, "posterior": 0.7})
    found = outlines(figure.axes[0])
    colours = [slice_pictures.colour_of(code).upper() for code in (1, 2)]
    assert [(dashed, colour) for colour, dashed, _ in found] == list(itertools.product((False, True), colours))
    for (_, dashed, corners), code in zip(found, (1, 2, 1, 2), strict=True):
        mask = as_seen(case.predictions["U-Net"] if dashed else case.truth, "axial")[3] == code
        rows, columns = np.nonzero(mask)
        # A line half a voxel outside of the last voxels' centres.
        assert corners[:, 0].min() == columns.min() - 0.5 and corners[:, 0].max() == columns.max() + 0.5
        assert corners[:, 1].min() == rows.min() - 0.5 and corners[:, 1].max() == rows.max() + 0.5
    assert legend_texts(figure) == ["1 anterior part", "2 posterior", "true", "predicted"]
    assert [text.get_text() for text in figure.axes[0].texts if text.get_text().isdigit()] == ["1", "2"]
    for text in figure.axes[0].texts[:2]:  # the digit lies inside of its class
        x, y = text.get_position()
        assert as_seen(case.truth, "axial")[3][y, x] == int(text.get_text())
    assert [bar.get_width() for bar in figure.axes[1].patches] == [0.8, 0.7]
    assert on_its_page(figure)


def test_an_outline_is_closed_at_the_edge_and_empty_borders_are_left_out():
    truth, image = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.float32)
    truth[:, :, 3] = 1
    image[2:10, 3:9] = 1.0
    full = made_case(truth=truth, modalities={"t1": np.ones(SHAPE, np.float32)}, predictions={"U-Net": truth})
    ax = plotting.slice_view(full, plane="axial", number=3).axes[0]
    assert [len(path.vertices) > 4 for path in ax.collections[0].get_paths()] == [True]
    assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 11.5), (15.5, -0.5))
    empty = np.zeros(SHAPE, np.uint8)
    small = made_case(truth=empty, modalities={"t1": image}, predictions={"U-Net": empty})
    ax = plotting.slice_view(small, plane="axial", number=3).axes[0]
    # Against the axes: voxels 2..9 of 12 from the right are 2..9, 3..8 of 16 from the front are 7..12.
    assert (ax.get_xlim(), ax.get_ylim()) == ((1.5, 9.5), (12.5, 6.5)) and not ax.collections
    wrong = empty.copy()
    wrong[0, 0, 0] = 2  # a false positive outside of the head is not hidden
    ax = plotting.slice_view(made_case(modalities={"t1": image}, truth=empty, predictions={"a": wrong}), plane="axial",
                             number=0).axes[0]  # fmt: skip
    assert (ax.get_xlim(), ax.get_ylim()) == ((1.5, 11.5), (15.5, 6.5)) and len(ax.collections) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"plane": "oblique"}, "plane is 'oblique'; expected axial, coronal, sagittal"),
        ({"number": 8}, "slice 8 of 8 axial ones; expected 0 to 7"),
        ({"number": -1}, "slice -1 of 8"),
        ({"modality": "t2"}, "modality 't2' is not known; there are t1, flair"),
        ({"model": "V-Net"}, "model 'V-Net' is not known; there are U-Net, exact"),
    ],
)
def test_a_view_of_what_is_not_there_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        plotting.slice_view(made_case(), **{"plane": "axial", "number": 0} | changes)


def test_overlays_have_a_row_a_case_and_a_column_a_plane():
    case, other = made_case(), made_case(spacing_mm=(1, 1, 1))
    figure = plotting.plane_overlays({"best: a_1, Dice 0.91": case, "worst: b_2, Dice 0.71": other}, modality="flair")
    assert on_its_page(figure) and len(figure.axes) == 6
    assert [ax.get_title() for ax in figure.axes[:3]] == list(PLANES)
    assert [figure.axes[k].get_ylabel() for k in (0, 3)] == ["best:\na_1\nDice 0.91", "worst:\nb_2\nDice 0.71"]
    assert legend_texts(figure) == ["1 anterior part", "2 posterior", "true", "predicted"]
    assert figure.get_supxlabel().startswith("Grey window: -2.5 (black) to 2.5 (white)")
    for ax, plane in zip(figure.axes, PLANES, strict=False):
        expected = windowed(as_seen(case.modalities["flair"], plane)[case.fullest_slice(plane)])[..., 0]
        np.testing.assert_array_equal(ax.images[0].get_array(), expected)
    assert figure.axes[0].get_aspect() == 0.5 and figure.axes[3].get_aspect() == 1
    exact = plotting.plane_overlays({"a": case}, model="exact").axes[0]
    true, predicted = ([found[2] for found in outlines(exact) if found[1] is dashed] for dashed in (False, True))
    assert all(np.array_equal(one, two) for one, two in zip(true, predicted, strict=True))
    for cases in ({}, {"a": case, "b": made_case(class_names=("background", "x", "y"))}):
        with pytest.raises(ValueError, match=f"plane_overlays: {len(cases)} cases; expected one or more, all of"):
            plotting.plane_overlays(cases)


# --- the panel of modalities ---


@pytest.mark.parametrize(("num", "under"), [(1, None), (4, None), (4, "t1ce")])
def test_the_panel_shows_every_modality_and_the_mask_in_colours(num, under):
    modalities = ("t1", "t1ce", "t2", "flair")[:num]
    image = np.random.default_rng(0).normal(size=(10, 10, num)).astype(np.float32)
    image[:2] = 0  # the border above
    mask = np.zeros((10, 10), np.uint8)
    mask[4:6, 3:8], mask[6:8, 3:8] = 1, 2
    figure = plotting.modality_panel(image, mask, modalities, NAMES, under=under)
    shown = under or modalities[-1]
    assert on_its_page(figure) and legend_texts(figure) == ["1 anterior part", "2 posterior"]
    assert [ax.get_title() for ax in figure.axes] == [*modalities, f"mask on {shown}"]
    for ax, name in zip(figure.axes, [*modalities, shown], strict=True):
        grey = ax.images[0].get_array()
        np.testing.assert_array_equal(grey, windowed(image[..., modalities.index(name)])[..., 0])
        assert (grey[:2] == 0).all() and ax.images[0].get_clim() == (0, 255)
        assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 9.5), (9.5, 1.5))
    colours = figure.axes[-1].images[1].get_array()
    assert (colours[mask == 0][:, 3] == 0).all()
    for code in (1, 2):
        assert (colours[mask == code] == to_rgba(slice_pictures.colour_of(code), OPACITY)).all()
    assert [text.get_text() for text in figure.axes[-1].texts] == ["1", "2"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": np.zeros((8, 8, 3))}, r"image is float64 \[8, 8, 3\], expected float \[H, W, 2\] for .* t1, t2"),
        ({"image": np.zeros((8, 8, 2), np.uint8)}, "image is uint8"),
        ({"mask": np.zeros((8, 4), np.uint8)}, r"mask is uint8 \[8, 4\], expected uint8 \[8, 8\]"),
        ({"mask": np.full((8, 8), 7, np.uint8)}, "mask holds code 7; expected 0 to 2"),
        ({"under": "flair"}, "modality 'flair' is not known"),
    ],
)
def test_a_panel_that_does_not_fit_is_refused(changes, said):
    arguments = {"image": np.ones((8, 8, 2)), "mask": np.zeros((8, 8), np.uint8), "modalities": ("t1", "t2")}
    with pytest.raises(ValueError, match=f"modality_panel: {said}"):
        plotting.modality_panel(**arguments | {"class_names": NAMES} | changes)


# --- gates ---


def gates(**changes):
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 16, 16), np.uint8)
    masks[1, 4:9, 5:11] = 2
    maps = {number: rng.random((2, 4, 8), np.float32) for number in (1, 4, 20)}
    return {"images": rng.normal(size=(2, 16, 16)), "maps_by_round": maps, "masks": masks} | changes


def test_gates_have_a_column_a_round_on_one_scale():
    arguments = gates()
    figure = plotting.gate_maps(**arguments)
    assert on_its_page(figure) and legend_texts(figure) == ["true mask"]
    *pictures, bar = figure.axes
    assert [ax.get_title() for ax in pictures[:4]] == ["image", "round 1", "round 4", "round 20"] and len(pictures) == 8
    np.testing.assert_array_equal(pictures[4].images[0].get_array(), windowed(arguments["images"][1])[..., 0])
    for place, maps in enumerate(arguments["maps_by_round"].values(), start=1):
        drawn = pictures[4 + place].images[0]
        np.testing.assert_array_equal(drawn.get_array(), np.kron(maps[1], np.ones((4, 2), np.float32)))
        assert drawn.get_clim() == (0, 1) and drawn.get_interpolation() == "nearest"
    assert bar.get_xlim() == (0, 1) and bar.get_xlabel().startswith("Attention coefficient")
    # Only the second slice has a mask; it is outlined on the image alone.
    assert [len(ax.collections) for ax in pictures] == [0] * 4 + [1, 0, 0, 0]
    assert not plotting.gate_maps(**gates(masks=None)).legends


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": np.zeros((2, 16, 16, 1))}, r"images is float64 \[2, 16, 16, 1\], expected float \[N, H, W\]"),
        ({"images": np.zeros((2, 16, 16), np.uint8)}, "images is uint8"),
        ({"masks": np.zeros((1, 16, 16))}, r"masks is \[1, 16, 16\], expected \[2, 16, 16\]"),
        ({"maps_by_round": {}}, "maps_by_round is empty"),
        ({"maps_by_round": {3: np.zeros((2, 5, 8))}}, r"maps of round 3 are \[2, 5, 8\] .*divide H and W"),
        ({"maps_by_round": {3: np.zeros((1, 4, 8))}}, "maps of round 3"),
        ({"maps_by_round": {3: np.full((2, 4, 8), 1.1)}}, "values outside 0 to 1"),
        ({"maps_by_round": {3: np.full((2, 4, 8), np.nan)}}, "values outside 0 to 1"),
    ],
)
def test_gates_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(ValueError, match=f"gate_maps: .*{said}"):
        plotting.gate_maps(**gates(**changes))


# --- charts ---


def scores():
    rows = [
        (region, method, model, 0.8 + 0.01 * number, 0.78 + 0.01 * number, 0.83 + 0.01 * number)
        for number, (region, method, model) in enumerate(
            itertools.product(("whole_tumour", "core"), ("centralized", "local", "fedavg"), ("unet", "attention_unet"))
        )
    ]
    return pd.DataFrame(rows, columns=["region", "method", "model", "mean", "low", "high"])


def hospitals():
    rows = [
        (hospital, 10 * hospital, model, method, 0.7 + 0.02 * hospital + gain, 0.6, 0.95)
        for hospital in (1, 2, 3) for model in ("unet", "attention_unet")
        for method, gain in (("local", 0.0), ("fedavg", 0.1 / hospital))
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["hospital", "num_train", "model", "method", "mean", "low", "high"])


def volumes(subjects=20):
    rng = np.random.default_rng(0)
    return pd.concat(
        pd.DataFrame({
            "region": region, "volume_ml": rng.uniform(2, 4, subjects),
            "volume_error_ml": rng.normal(bias, 0.2, subjects), "hospital": np.arange(subjects) % 3 + 1,
        })
        for region, bias in (("anterior_part", 0.1), ("posterior", -0.2))
    )  # fmt: skip


CHARTS = {
    "score_table_dots": (scores, "region method model mean low high"),
    "hospital_dice": (hospitals, "hospital num_train model method mean low high"),
    "volume_agreement": (volumes, "region volume_ml volume_error_ml"),
}


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_fits_its_page_and_refuses_missing_columns_and_rows(name):
    make, columns = CHARTS[name]
    draw = getattr(plotting, name)
    assert on_its_page(draw(make()))
    panel = "model" if name == "hospital_dice" else "region"
    assert on_its_page(draw(make()[lambda df: df[panel] == df[panel].iloc[0]]))
    for column in columns.split():
        check_a_missing_column_is_named(name, make(), column)
    check_an_empty_table_is_refused(name, make())
    if name != "volume_agreement":
        assert on_its_page(draw(make().assign(low=np.nan, high=np.nan)))
        with pytest.raises(ValueError, match=f"{name}: a mean lies outside its interval"):
            draw(make().assign(high=0.1))
        check_double_rows_are_refused(name, make())


def test_score_dots_are_filled_for_the_unet_and_open_for_the_attention_unet():
    frame = scores()
    figure = plotting.score_table_dots(frame)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["whole tumour", "core"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [
        f"{method}, {model}" for method in ("Centralized", "Alone", "FedAvg") for model in ("U-Net", "Attention U-Net")
    ]
    assert legend_texts(figure) == ["mean and 95 % interval over subjects", "U-Net", "Attention U-Net"]
    for ax, region in zip(figure.axes, ("whole_tumour", "core"), strict=True):
        table = frame[frame["region"] == region]
        dots = [line for line in ax.lines if len(line.get_xdata()) == 1]
        bars = [line for line in ax.lines if len(line.get_xdata()) == 2]
        assert [dot.get_xdata()[0] for dot in dots] == table["mean"].tolist()
        assert [dot.get_ydata()[0] for dot in dots] == list(range(6))
        assert [list(bar.get_xdata()) for bar in bars] == table[["low", "high"]].to_numpy().tolist()
        assert [dot.get_marker() for dot in dots] == [plotting.look(method).marker for method in table["method"]]
        assert [to_hex(dot.get_markerfacecolor()) == "#ffffff" for dot in dots] == [False, True] * 3
        assert [text.get_text() for text in ax.texts] == [f"{mean:.3f}" for mean in table["mean"]]
    assert figure.get_supxlabel() == "Dice"
    millimetres = plotting.score_table_dots(frame, score="hd95_mm", interval_label="mean")
    assert millimetres.get_supxlabel() == "HD95 (mm)" and legend_texts(millimetres)[0] == "mean"
    with pytest.raises(ValueError, match="score is 'iou'; expected dice or hd95_mm"):
        plotting.score_table_dots(frame, score="iou")
    with pytest.raises(ValueError, match="no look for 'vnet'"):
        plotting.score_table_dots(frame.replace({"model": {"unet": "vnet"}}))


def test_a_method_without_a_model_has_no_row():
    frame = scores().query("not (method == 'local' and model == 'unet')")
    ticks = [tick.get_text() for tick in plotting.score_table_dots(frame).axes[0].get_yticklabels()]
    assert len(ticks) == 5 and "Alone, U-Net" not in ticks


def test_hospitals_have_a_joined_pair_of_dots_and_their_gain():
    frame = hospitals()
    figure = plotting.hospital_dice(frame)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["U-Net", "Attention U-Net"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [
        f"Hospital {hospital}\n{10 * hospital} training subjects" for hospital in (1, 2, 3)
    ]
    assert legend_texts(figure) == [
        "Each hospital alone", "Federated (FedAvg)", "mean and 95 % interval over test subjects"
    ]
    ax = figure.axes[0]
    joins = [list(line.get_xdata()) for line in ax.lines if line.get_ydata()[0] != line.get_ydata()[-1]]
    np.testing.assert_allclose(joins, [[0.72, 0.82], [0.74, 0.79], [0.76, 0.76 + 0.1 / 3]])
    assert [text.get_text() for text in ax.texts] == ["+0.100", "+0.050", "+0.033"]
    markers = [line.get_marker() for line in ax.lines if len(line.get_xdata()) == 1]
    assert markers == [plotting.look("local").marker, plotting.look("fedavg").marker] * 3
    with pytest.raises(ValueError, match="hospital 3, attention_unet: rows for local; expected local and fedavg"):
        plotting.hospital_dice(frame.iloc[:-1])
    frame.loc[0, "num_train"] = 99
    with pytest.raises(ValueError, match="hospital 1 has two values of num_train"):
        plotting.hospital_dice(frame)


@pytest.mark.parametrize("by_hospital", [True, False])
def test_volume_agreement_is_that_of_bland_and_altman(by_hospital):
    frame = volumes() if by_hospital else volumes().drop(columns="hospital")
    figure = plotting.volume_agreement(frame)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["anterior part", "posterior"]
    for ax, region in zip(figure.axes, ("anterior_part", "posterior"), strict=True):
        table = frame[frame["region"] == region]
        true, predicted = table["volume_ml"], table["volume_ml"] + table["volume_error_ml"]
        points = [line for line in ax.lines if line.get_linestyle() == "None"]
        assert len(points) == (3 if by_hospital else 1) == len({point.get_marker() for point in points})
        drawn = np.concatenate([point.get_xydata() for point in points])
        expected = np.column_stack([(true + predicted) / 2, predicted - true])
        np.testing.assert_allclose(drawn[np.argsort(drawn[:, 0])], expected[np.argsort(expected[:, 0])])
        mean, deviation = np.mean(predicted - true), np.std(predicted - true, ddof=1)
        lines = [line for line in ax.lines if line.get_linestyle() != "None"]
        limits = [mean, mean - 1.96 * deviation, mean + 1.96 * deviation]
        np.testing.assert_allclose([line.get_ydata()[0] for line in lines], limits)
        assert [line.get_linestyle() for line in lines] == ["-", "--", "--"]
        assert [float(text.get_text()) for text in ax.texts] == pytest.approx(limits, rel=0.01)
    expected = ["mean difference", "95 % limits of agreement (mean ± 1.96 sd)"]
    assert legend_texts(figure) == expected + [f"Hospital {number}" for number in (1, 2, 3)] * by_hospital


def test_volumes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="a true or a predicted volume is below 0"):
        plotting.volume_agreement(volumes().assign(volume_ml=-1.0))
    with pytest.raises(ValueError, match="a true or a predicted volume is below 0"):
        plotting.volume_agreement(volumes().assign(volume_error_ml=-5.0))
    with pytest.raises(ValueError, match="region 'posterior' has one subject"):
        plotting.volume_agreement(volumes().iloc[:21])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=40), st.floats(-50, 50), st.floats(0.1, 10))
def test_limits_of_agreement_shift_and_stretch_with_the_differences(values, shift, scale):
    values = np.array(values)
    found, moved = agreement_limits(values), agreement_limits(scale * values + shift)
    np.testing.assert_allclose(moved, scale * np.array(found) + shift, atol=1e-6)
    assert found.low <= found.mean <= found.high
    variance = ((values - values.mean()) ** 2).sum() / (len(values) - 1)
    assert found.high - found.mean == pytest.approx(1.96 * np.sqrt(variance))


def test_limits_need_two_differences():
    with pytest.raises(ValueError, match="1 differences; expected two or more"):
        agreement_limits(np.array([1.0]))


def test_learning_curves_show_dice_of_methods_in_a_panel_a_model():
    rows = [
        (panel, method, seed, number, 0.5 + 0.1 * number + 0.01 * seed)
        for panel in ("U-Net", "Attention U-Net") for method in ("centralized", "local", "fedavg")
        for seed in range(3) for number in range(4)
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["panel", "method", "seed", "round", "value"])
    figure = plotting.learning_curves(frame, y_label="Dice (validation)")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["U-Net", "Attention U-Net"]
    assert figure.axes[0].get_ylabel() == "Dice (validation)" and on_its_page(figure)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), 0.51 + 0.1 * np.arange(4))
    by_model = frame.assign(model=frame["panel"].map({"U-Net": "unet", "Attention U-Net": "attention_unet"}))
    figure = plotting.learning_curves(by_model.drop(columns="panel"), y_label="Dice", by="model")
    assert legend_texts(figure) == ["U-Net", "Attention U-Net"]
