"""Figures of notebook 06 from small made-up tables and images: what is drawn, what is refused."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex, to_rgb

from fl_utils import plotting
from fl_utils.plotting import privacy
from fl_utils.plotting.privacy_attacks import reached_tpr
from tests.unit.made_figures import (
    check_a_missing_column_is_named, check_an_empty_table_is_refused, check_double_rows_are_refused, columns_of,
    legend_clear_of_data, legend_texts, on_its_page, ticks,
)  # fmt: skip

PANELS = ("Brain MRI", "Chest X-ray")
ARMS = ("none", "patient_8", "hospital_few_adaptive", "encrypted")
PROTECTIONS = (
    "none", "longer", "patient_8", "patient_3", "patient_1", "hospital_few", "hospital_few_adaptive", "hospital_many",
    "hospital_many_adaptive", "none_many", "encrypted", "both",
)  # fmt: skip


def frontier():
    series = (("patient", "Patient-level DP", (1, 3, 8, np.inf)), ("hospital", "Few hospitals", (8, 30, 1000)))
    bands = (("No protection", 0.9), ("Each hospital alone", 0.7), ("Chance", 0.5))
    rows = []
    for panel in PANELS:
        for unit, name, epsilons in series:
            rows += [(panel, unit, name, e, 0.6 + 0.05 * k, 0.55, 0.85) for k, e in enumerate(epsilons)]
        rows += [(panel, "", name, np.nan, mean, mean - 0.02, mean + 0.02) for name, mean in bands]
    return pd.DataFrame(rows, columns=["panel", "unit", "series", "epsilon", "mean", "low", "high"])


def inversion():
    conditions = (("1 image", 0.9), ("16 images, one step", 0.4), ("Encrypted sum (CKKS)", np.nan))
    rows = [
        (panel, condition, image, value + 0.02 * image, 0.2, 0.45)
        for panel, (condition, value), image in itertools.product(PANELS, conditions, range(4))
    ]
    return pd.DataFrame(rows, columns=["panel", "condition", "image", "value", "random_other", "best_other"])


def members():
    rows = [
        (panel, attack, arm, unit, metric, mean, mean - 0.005, mean + 0.01, chance)
        for panel, attack, arm, unit in itertools.product(
            PANELS, ("Loss threshold", "LiRA"), ARMS, ("image", "patient")
        )
        for metric, mean, chance in (("tpr_at_fpr", 0.05, 0.01), ("auc", 0.6, 0.5))
    ]
    return pd.DataFrame(
        rows, columns=["panel", "attack", "arm", "unit", "metric", "mean", "low", "high", "chance"]
    )


def curves():
    rates = ((0, 0), (0, 0.02), (0.01, 0.05), (0.1, 0.3), (1, 1))
    rows = [(panel, arm, "LiRA", *rate) for panel, arm, rate in itertools.product(PANELS, ARMS, rates)]
    return pd.DataFrame(rows, columns=["panel", "arm", "attack", "fpr", "tpr"])


def cells():
    rows = []
    for panel, arm in itertools.product(PANELS, ARMS):
        rows.append((panel, arm, "Balanced accuracy", 0.87, "0.87 [0.85, 0.89]", 0.25))
        sealed = arm == "encrypted"
        rows.append((panel, arm, "SSIM", *((np.nan, "nothing to attack", np.nan) if sealed else (0.8, "0.80", 1.0))))
        rows.append((panel, arm, "Patient-level epsilon", 8.0, "8", np.nan))
    return pd.DataFrame(rows, columns=["panel", "arm", "column", "value", "text", "badness"])


FIGURES = {
    "privacy_frontier": (frontier, "panel unit series epsilon mean low high"),
    "inversion_scores": (inversion, "panel condition image value random_other best_other"),
    "membership_points": (members, "panel attack arm unit metric mean low high chance"),
    "membership_roc": (curves, "panel arm attack fpr tpr"),
    "protection_heatmap": (cells, "panel arm column value text badness"),
}


def pictures(num=3, **changes):
    rng = np.random.default_rng(0)
    arguments = {
        "originals": rng.integers(0, 256, (num, 16, 16), np.uint8),
        "reconstructions": {
            "No protection": rng.random((num, 16, 16)), "Encrypted sum (CKKS)": np.full((num, 16, 16), np.nan)
        },
        "names": [f"Pneumonia {number}" for number in range(num)],
        "texts": {"No protection": [f"SSIM 0.8{number}" for number in range(num)]},
    }  # fmt: skip
    return arguments | changes


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_fits_its_page_whole_and_in_part(name):
    frame = FIGURES[name][0]()
    for one in (frame, frame[frame["panel"] == PANELS[0]]):
        figure = getattr(plotting, name)(one)
        assert on_its_page(figure) and legend_clear_of_data(figure) and figure.get_suptitle() == ""


@pytest.mark.parametrize(("name", "column"), columns_of(FIGURES))
def test_a_missing_column_is_named(name, column):
    check_a_missing_column_is_named(name, FIGURES[name][0](), column)


@pytest.mark.parametrize("name", FIGURES)
def test_empty_tables_and_double_rows_are_refused(name):
    check_an_empty_table_is_refused(name, FIGURES[name][0]())
    if name != "membership_roc":  # a curve may touch a point twice
        check_double_rows_are_refused(name, FIGURES[name][0]())


@pytest.mark.parametrize("name", ["membership_points", "membership_roc", "protection_heatmap"])
def test_an_arm_without_a_look_is_refused(name):
    with pytest.raises(ValueError, match="no look for 'magic'"):
        getattr(plotting, name)(FIGURES[name][0]().replace({"arm": {"encrypted": "magic"}}))


def test_protections_differ_in_more_than_colour():
    looks = [plotting.look(name) for name in PROTECTIONS]
    for values in ([look.marker for look in looks], [look.label for look in looks]):
        assert len(set(values)) == len(looks)
    # Two lines of one colour never have one dash, nor one marker.
    drawn = [*looks, plotting.look("local")]
    assert len({(look.colour, str(look.linestyle)) for look in drawn}) == len(drawn)
    assert len({(look.colour, look.marker) for look in drawn}) == len(drawn)


def test_the_frontier_has_a_line_a_series_and_bands_across():
    figure = plotting.privacy_frontier(frontier(), y_label="Dice (test)")
    ax = figure.axes[0]
    assert ax.get_ylabel() == "Dice (test)" and figure.get_supxlabel().startswith("ε of the unit")
    # The unit is added where the series' name does not say it.
    assert legend_texts(figure) == [
        "Patient-level DP", "Few hospitals (hospital-level)", "No protection", "Each hospital alone", "Chance",
        "95 % interval over seeds",
    ]  # fmt: skip
    with_markers = [line for line in ax.lines if line.get_marker() not in ("None", None) and len(line.get_xdata())]
    patient, infinite, hospital = with_markers
    assert [len(line.get_xdata()) for line in with_markers] == [3, 1, 3]
    np.testing.assert_allclose(patient.get_ydata(), [0.6, 0.65, 0.7])
    assert patient.get_marker() != hospital.get_marker() and patient.get_linestyle() != hospital.get_linestyle()
    assert to_hex(hospital.get_markerfacecolor()) == "#ffffff" != to_hex(patient.get_markerfacecolor())
    # A log axis: equal factors are equal steps; infinity beyond all of them.
    steps = np.diff(patient.get_xdata())
    np.testing.assert_allclose(steps, np.log10([3, 8 / 3]))
    assert infinite.get_xdata()[0] > hospital.get_xdata().max() and ticks(ax.xaxis)[-1] == "∞ (no noise)"
    assert ticks(ax.xaxis)[:3] == ["1", "3", "8"] and "1000" in ticks(ax.xaxis)
    # Two bands with an interval; chance has none.
    assert sorted(round(patch.get_y(), 2) for patch in ax.patches) == [0.68, 0.88]
    across = {line.get_ydata()[0]: line.get_linestyle() for line in ax.lines if list(line.get_xdata()) == [0, 1]}
    assert set(across) >= {0.9, 0.7, 0.5}


def test_the_frontier_of_one_unit_says_it_on_the_axis():
    frame = frontier().query("series not in ['Few hospitals', 'Chance']")
    figure = plotting.privacy_frontier(frame[frame["epsilon"] != np.inf].assign(low=np.nan, high=np.nan))
    assert figure.get_supxlabel().startswith("Patient-level ε") and ticks(figure.axes[0].xaxis) == ["1", "3", "8"]
    assert "Chance" not in legend_texts(figure) and not figure.axes[0].patches


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda df: df.assign(epsilon=df["epsilon"].replace(3.0, np.nan)), "'Patient-level DP' has no epsilon"),
        (lambda df: df.assign(epsilon=df["epsilon"].fillna(2.0)), "'No protection' has an epsilon; expected NaN"),
        (lambda df: df.replace({"series": {"Chance": "Luck"}}), "'Luck' has no epsilon. Without epsilon are No prot"),
        (lambda df: df.assign(epsilon=df["epsilon"].replace(3.0, 0.0)), "epsilon is 0; expected above 0"),
        (lambda df: df.replace({"unit": {"hospital": "image"}}), "expected 'patient' or 'hospital'"),
        (lambda df: df.replace({"series": {"Few hospitals": "Patient-level DP"}}).drop_duplicates(
            ["panel", "series", "epsilon"]), "'Patient-level DP' has two units"),
        (lambda df: df[df["epsilon"].isna()], "no row has an epsilon"),
        (lambda df: df.assign(high=0.1), "low <= mean <= high"),
        (lambda df: df.assign(mean=np.nan), "column 'mean' has 20 values that are not finite"),
    ],
)  # fmt: skip
def test_a_frontier_that_would_mislead_is_refused(change, said):
    with pytest.raises(ValueError, match=f"privacy_frontier: .*{said}"):
        plotting.privacy_frontier(change(frontier()))


def test_inversion_has_a_dot_an_image_and_what_other_images_reach():
    figure = plotting.inversion_scores(inversion())
    ax = figure.axes[0]
    assert figure.get_supxlabel() == "SSIM with the original"
    assert ticks(ax.yaxis) == ["1 image", "16 images, one step", "Encrypted sum (CKKS)"]
    assert legend_texts(figure) == [
        "an image", "mean over images", "a random other real image", "the most alike other real image"
    ]  # fmt: skip
    random, best, dots, mean = ax.lines[:4]
    assert list(random.get_xdata()) == pytest.approx([0.2]) and list(best.get_xdata()) == pytest.approx([0.45])
    np.testing.assert_allclose(dots.get_xdata(), [0.9, 0.92, 0.94, 0.96])
    assert len(set(dots.get_ydata())) == 4 and np.abs(dots.get_ydata()).max() < 0.5
    assert list(mean.get_xdata()) == pytest.approx([0.93])
    assert len({str(line.get_marker()) for line in (random, best, dots, mean)}) == 4
    assert [(text.get_text(), text.get_position()[1]) for text in ax.texts] == [("nothing to attack", 2)]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()


def test_inversion_measures_are_never_mixed():
    both = pd.concat([inversion().assign(measure="ssim"), inversion().assign(measure="psnr_db", value=20.0)])
    figure = plotting.inversion_scores(both, measure="psnr_db")
    assert figure.get_supxlabel() == "PSNR to the original (dB)"
    assert list(figure.axes[0].lines[3].get_xdata()) == [20.0]
    assert list(plotting.inversion_scores(both).axes[0].lines[3].get_xdata()) == pytest.approx([0.93])
    with pytest.raises(ValueError, match="more than one row for panel 'Brain MRI', condition '1 image', image 0"):
        plotting.inversion_scores(both.drop(columns="measure"))
    with pytest.raises(ValueError, match="SSIM up to 20; expected -1 to 1. Is it PSNR"):
        plotting.inversion_scores(inversion().assign(value=20.0))
    with pytest.raises(ValueError, match="a value is infinite"):
        plotting.inversion_scores(inversion().assign(value=np.inf), measure="psnr_db")
    with pytest.raises(ValueError, match="measure is 'lpips'; expected 'ssim' or 'psnr_db'"):
        plotting.inversion_scores(inversion(), measure="lpips")
    with pytest.raises(ValueError, match="no rows"):
        plotting.inversion_scores(both[both["measure"] == "ssim"], measure="psnr_db")


def test_the_reconstructions_stand_below_the_originals():
    arguments = pictures()
    figure = plotting.reconstruction_grid(**arguments)
    assert on_its_page(figure) and legend_clear_of_data(figure) and legend_texts(figure) == ["no reconstruction"]
    assert len(figure.axes) == 9 and [ax.get_title() for ax in figure.axes[:3]] == arguments["names"]
    rows = [ax.get_ylabel().replace("\n", " ") for ax in figure.axes[::3]]
    assert rows == ["Original", *arguments["reconstructions"]]
    for number, ax in enumerate(figure.axes[:3]):
        np.testing.assert_allclose(ax.images[0].get_array(), arguments["originals"][number])
    made = arguments["reconstructions"]["No protection"]
    for number, ax in enumerate(figure.axes[3:6]):
        np.testing.assert_allclose(ax.images[0].get_array(), 255 * made[number])
        assert ax.images[0].get_clim() == (0, 255) and ax.get_xlabel() == f"SSIM 0.8{number}"
    assert all(not ax.images and ax.patches[0].get_hatch() for ax in figure.axes[6:])
    figure = plotting.reconstruction_grid(**arguments, empty_label="nothing to attack")
    assert legend_texts(figure) == ["nothing to attack"]


def test_float_originals_are_the_same_picture_and_texts_are_optional():
    arguments = pictures(num=1, texts=None)
    arguments["reconstructions"].pop("Encrypted sum (CKKS)")
    one = plotting.reconstruction_grid(**arguments)
    other = plotting.reconstruction_grid(**arguments | {"originals": arguments["originals"] / 255})
    np.testing.assert_allclose(one.axes[0].images[0].get_array(), other.axes[0].images[0].get_array())
    assert not one.legends and on_its_page(one) and one.axes[1].get_xlabel() == ""


HALF = np.where(np.arange(16) < 8, np.nan, 0.5) * np.ones((3, 16, 1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"originals": np.zeros((3, 16, 16, 1), np.uint8)}, r"originals is uint8 \[3, 16, 16, 1\], expected uint8 or"),
        ({"originals": np.zeros((3, 16, 16), int)}, "originals is int64"),
        ({"originals": np.full((3, 16, 16), np.nan)}, "images of 'Original' hold values outside 0 to 1"),
        ({"originals": np.full((3, 16, 16), 200.0)}, "images of 'Original' hold values outside 0 to 1"),
        ({"reconstructions": {}}, "reconstructions of no condition"),
        ({"reconstructions": {"Original": np.zeros((3, 16, 16))}}, "none of them named 'Original'"),
        ({"reconstructions": {"a": np.zeros((2, 16, 16))}}, r"'a' are float64 \[2, 16, 16\], expected float \[3, 16"),
        ({"reconstructions": {"a": np.zeros((3, 16, 16), np.uint8)}}, "'a' are uint8"),
        ({"reconstructions": {"a": np.full((3, 16, 16), 1.2)}}, "'a' hold values outside 0 to 1"),
        ({"reconstructions": {"a": HALF}}, "'a' hold values outside 0 to 1, or are NaN in part"),
        ({"names": ["one"]}, "names has 1 entries for 3 images"),
        ({"texts": {"No protection": ["x"]}}, "texts of 'No protection' has 1 entries"),
        ({"texts": {"elsewhere": ["x"] * 3}}, "texts for elsewhere; known are Original, No protection"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(ValueError, match=f"reconstruction_grid: .*{said}"):
        plotting.reconstruction_grid(**pictures(**changes))


def test_membership_has_a_marker_an_attack_and_a_panel_a_unit():
    figure = plotting.membership_points(members())
    titles = [ax.get_title(loc="left").replace("\n", " ") for ax in figure.axes]
    assert titles == [f"{panel}, by {unit}" for panel in PANELS for unit in ("image", "patient")]
    assert legend_texts(figure) == ["Loss threshold", "LiRA", "95 % interval over seeds", "chance"]
    ax = figure.axes[0]
    assert ticks(ax.yaxis) == [plotting.look(arm).label for arm in ARMS]
    dots = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert len(dots) == 8 and {dot.get_xdata()[0] for dot in dots} == {0.05}
    attacks = {(dot.get_marker(), dot.get_color()) for dot in dots}
    assert len(attacks) == 2 and len({marker for marker, _ in attacks}) == 2
    assert len({dot.get_ydata()[0] for dot in dots}) == 8
    chance = [line for line in ax.lines if list(line.get_xdata()) == [0.01, 0.01]]
    assert len(chance) == 1 and chance[0].is_dashed()


def test_the_metric_of_membership_is_chosen():
    one = members().query("unit == 'patient'")
    assert plotting.membership_points(one).get_supxlabel() == "TPR at 1 % FPR, by patient"
    figure = plotting.membership_points(one.assign(chance=np.nan, low=np.nan, high=np.nan), metric="auc")
    assert figure.get_supxlabel() == "AUC, by patient" and "chance" not in legend_texts(figure)
    for changes, options, said in (
        ({}, {"metric": "advantage"}, "metric is 'advantage'; expected 'tpr_at_fpr' or 'auc'"),
        ({"metric": "auc"}, {}, "no rows"),
        ({"high": 0.0}, {}, "low <= mean <= high"),
        ({"mean": 5.0, "high": 6.0}, {}, "column 'mean' goes from 5 to 5; expected 0 to 1"),
    ):
        with pytest.raises(ValueError, match=f"membership_points: .*{said}"):
            plotting.membership_points(one.drop_duplicates(["panel", "attack", "arm"]).assign(**changes), **options)


def test_the_roc_is_log_log_with_a_line_an_arm():
    figure = plotting.membership_roc(curves())
    assert legend_texts(figure) == [*(plotting.look(arm).label for arm in ARMS), "chance"]
    ax = figure.axes[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log") and ax.get_xlim() == (1e-3, 1)
    assert figure.get_supxlabel() == "False-positive rate (LiRA)"
    lines, chance = ax.lines[:-1], ax.lines[-1]
    assert [line.get_marker() for line in lines] == [plotting.look(arm).marker for arm in ARMS]
    assert list(chance.get_xdata()) == list(chance.get_ydata()) == [1e-3, 1]
    two = plotting.membership_roc(pd.concat([curves(), curves().assign(attack="Loss threshold")]))
    assert len(two.axes) == 4 and two.axes[-1].get_title(loc="left").replace("\n", " ") == "Chest X-ray: Loss threshold"
    with pytest.raises(ValueError, match="column 'tpr' goes from 0 to 100; expected 0 to 1"):
        plotting.membership_roc(curves().assign(tpr=100 * curves()["tpr"]))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12), st.floats(0.001, 1))
def test_the_roc_shows_what_a_threshold_reaches(rates, limit):
    fpr, tpr = np.array(rates).T
    expected = max([0.0, *tpr[fpr <= limit * (1 + 1e-9)]])
    assert reached_tpr(fpr, tpr, np.array([limit])) == [expected]


def test_the_roc_reads_as_the_tabled_metric():
    line = plotting.membership_roc(curves().query("panel == 'Brain MRI'")).axes[0].lines[0]
    at = dict(zip(np.round(line.get_xdata(), 6), line.get_ydata(), strict=True))
    assert (at[0.001], at[0.01], at[0.1], at[1.0]) == (0.02, 0.05, 0.3, 1.0)
    assert at[min(x for x in at if x > 0.05)] == 0.05  # a step, not a slope


def test_the_heatmap_writes_every_cell_and_hatches_what_is_not_there():
    frame = cells()
    figure = plotting.protection_heatmap(frame[~((frame["arm"] == "patient_8") & (frame["column"] == "SSIM"))])
    assert legend_texts(figure) == ["not measured, or cannot be", "neither good nor bad"]
    ax = figure.axes[0]
    assert ticks(ax.xaxis) == ["Balanced accuracy", "SSIM", "Patient-level epsilon"]
    assert ticks(ax.yaxis) == [plotting.look(arm).label for arm in ARMS]
    hatched = [bool(patch.get_hatch()) for patch in ax.patches]
    assert hatched == [False] * 4 + [True] + [False] * 5 + [True, False]
    texts = [text.get_text() for text in ax.texts]
    assert len(texts) == 11 and texts[0] == "0.87\n[0.85, 0.89]" and "nothing to attack" in texts
    good, bad = ax.patches[0].get_facecolor(), ax.patches[1].get_facecolor()
    assert sum(good[:3]) > sum(bad[:3]) and to_hex(bad) == "#d55e00"
    assert ticks(figure.axes[-1].xaxis) == ["good", "bad"]


def test_a_whole_heatmap_has_no_legend_of_gaps():
    frame = cells().query("column == 'Balanced accuracy'")
    assert legend_texts(plotting.protection_heatmap(frame)) == []
    with pytest.raises(ValueError, match="protection_heatmap: column 'badness' goes from 1.5 to 1.5; expected 0"):
        plotting.protection_heatmap(frame.assign(badness=1.5))


def test_letters_read_on_every_colour_of_the_heatmap():
    """Black on the darkest cell keeps the contrast of WCAG 2.1, level AA."""
    frame = cells().query("column == 'Balanced accuracy' and panel == 'Brain MRI'")
    ax = plotting.protection_heatmap(frame.assign(badness=np.linspace(0, 1, len(frame)))).axes[0]
    assert {to_hex(text.get_color()) for text in ax.texts} == {"#000000"}
    channels = np.array([to_rgb(patch.get_facecolor()) for patch in ax.patches])
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    contrasts = (linear @ [0.2126, 0.7152, 0.0722] + 0.05) / 0.05
    assert len(contrasts) == len(ARMS) and contrasts.min() >= 4.5 and (np.diff(contrasts) < 0).all()


def test_bands_and_arms_have_the_same_words():
    assert list(privacy.BANDS) == [plotting.look(name).label for name in ("none", "none_many", "local")]
