"""Figures of notebook 07 from small made-up tables: what is drawn, what is said to be missing, what is refused."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex, to_rgb

from fl_utils import plotting
from fl_utils.config import AGGREGATOR_LABELS, ATTACK_LABELS
from fl_utils.plotting.gaps import text_colour
from tests.unit.made_figures import (
    check_a_missing_column_is_named,
    check_an_empty_table_is_refused,
    check_double_rows_are_refused,
    legend_clear_of_data,
    legend_texts,
    on_its_page,
    ticks,
)

PANELS = ("IID", "Dirichlet 0.5")
#: Not in the order of the labels, so that a figure has to sort them.
ATTACKS, RULES = ("sign_flip", "clean", "a_little"), ("krum", "mean", "coordinate_median")
IN_ORDER = [ATTACK_LABELS[name] for name in ("clean", "sign_flip", "a_little")]
RULES_IN_ORDER = ["Mean", "Coordinate median", "Krum"]


def table(columns, rows):
    return pd.DataFrame(rows, columns=columns.split())


def grid():
    places = itertools.product(PANELS, ATTACKS, RULES)
    rows = [(*place, 0.3 + 0.03 * k, 0.28 + 0.03 * k, 0.33 + 0.03 * k, 5) for k, place in enumerate(places)]
    return table("panel attack aggregator mean low high seeds", rows)


def rounds():
    rows = [
        (attack, rule, number, 0.3 + 0.02 * number, 0.25, 0.6)
        for attack, rule, number in itertools.product(ATTACKS, RULES, range(1, 13))
    ]
    return table("attack aggregator round mean low high", rows)


def fractions():
    rows = [
        (attack, rule, fraction, 0.9 - fraction, 0.4, 0.95)
        for attack, rule, fraction in itertools.product(ATTACKS, RULES, (0.1, 0.3, 0.4))
    ]
    return table("attack aggregator fraction mean low high", rows)


def updates():
    rng, rows = np.random.default_rng(0), []
    for attack, at, client in itertools.product(ATTACKS, (1, 10), range(10)):
        bad = int(client in (3, 7) and attack != "clean")
        rows.append((attack, at, client, *(rng.normal(0, 1, 2) + 20 * bad), bad, int(bad and client == 3)))
    return table("attack round client pca_0 pca_1 attacker flagged", rows)


def scores():
    places = itertools.product(ATTACKS, ("cosine", "pca"), ("recall", "precision", "false_alarms"))
    rows = [(*place, 0.5, 0.4, 0.7) for place in places]
    return table("attack detector metric mean low high", rows)


def unusual():
    rows = [
        (rule, 0.05 * client, -0.01 * client + 0.002 * seed, seed, client)
        for rule, seed, client in itertools.product(RULES, range(3), range(10))
    ]
    return table("aggregator distance difference seed client", rows)


def fits():
    rows = [(rule, x, -0.2 * x, -0.2 * x - 0.03, -0.2 * x + 0.02) for rule in RULES for x in (0.0, 0.2, 0.45)]
    return table("aggregator x y low high", rows)


def groups():
    rows = [
        (rule, size, bad, 0.02 + bad * size * 0.3)
        for rule, size, bad in itertools.product(("coordinate_median", "krum"), (1, 2, 5, 10), (0, 1, 3))
    ]
    return table("rule group_size attackers error", rows)


MEAN = {"value_label": "Balanced accuracy (test)"}
FIGURES = {
    "attack_heatmap": (grid, MEAN), "attack_curves": (rounds, MEAN), "fraction_lines": (fractions, MEAN),
    "update_map": (updates, {}), "detection_scores": (scores, {}), "unusual_hospitals": (unusual, {}),
    "group_error": (groups, {}),
}  # fmt: skip
COLUMNS = [(name, column) for name, (frame, _) in FIGURES.items() for column in frame().columns]


def draw(name, frame=None, **options):
    make, fixed = FIGURES[name]
    return getattr(plotting, name)(make() if frame is None else frame, **fixed | options)


def titles(figure):
    return [ax.get_title(loc="left").replace("\n", " ") for ax in figure.axes]


def words(ax):
    return [text.get_text() for text in ax.texts]


def hatched(ax):
    return [patch for patch in ax.patches if patch.get_hatch()]


def contrast(one, other):
    """Of two colours, after WCAG 2.1; written out here once more, so that the figures' own way is checked."""
    channels = np.array([to_rgb(one), to_rgb(other)])
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_fits_its_page_whole_and_in_part(name):
    frame = FIGURES[name][0]()
    first = frame.columns[0]
    for one in (frame, frame[frame[first] == frame[first].iloc[0]]):
        figure = draw(name, one)
        assert on_its_page(figure) and legend_clear_of_data(figure) and figure.get_suptitle() == ""


def test_the_whole_grid_fits_its_page():
    places = list(itertools.product(PANELS[:1], ATTACK_LABELS, AGGREGATOR_LABELS))
    frame = table("panel attack aggregator", places).assign(mean=0.8, low=0.75, high=0.85, seeds=5)
    frame.loc[::7, "seeds"] = 2
    figure = draw("attack_heatmap", frame[np.arange(len(frame)) % 5 > 0], chance=0.25)
    assert on_its_page(figure)
    ax = figure.axes[0]
    assert ticks(ax.xaxis) == list(AGGREGATOR_LABELS.values()) and ticks(ax.yaxis) == list(ATTACK_LABELS.values())
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert not any(left.overlaps(right) for left, right in itertools.pairwise(boxes))
    width = ax.get_window_extent().width / len(AGGREGATOR_LABELS)
    assert max(text.get_window_extent().width for text in ax.texts) < width


@pytest.mark.parametrize(("name", "column"), COLUMNS)
def test_a_missing_column_is_named(name, column):
    make, options = FIGURES[name]
    check_a_missing_column_is_named(name, make(), column, **options)


@pytest.mark.parametrize("name", FIGURES)
def test_empty_tables_and_double_rows_are_refused(name):
    make, options = FIGURES[name]
    check_an_empty_table_is_refused(name, make(), **options)
    check_double_rows_are_refused(name, make(), **options)


@pytest.mark.parametrize(
    ("name", "column"),
    [("attack_heatmap", "mean"), ("attack_curves", "mean"), ("fraction_lines", "mean"), ("update_map", "pca_0"),
     ("unusual_hospitals", "difference"), ("group_error", "error")],
)  # fmt: skip
def test_a_figure_of_nothing_is_refused(name, column):
    frame = FIGURES[name][0]().assign(seeds=0) if name == "attack_heatmap" else FIGURES[name][0]()
    with pytest.raises(ValueError, match=f"{name}: column '{column}' is empty"):
        draw(name, frame.assign(**{column: np.nan}))


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "group_error"])
@pytest.mark.parametrize("column", ["attack", "aggregator"])
def test_a_name_without_a_label_is_refused(name, column):
    frame = FIGURES[name][0]()
    if column in frame:
        with pytest.raises(ValueError, match=f"{name}: {column} is 'magic'; expected one of"):
            draw(name, frame.replace({column: {frame[column].iloc[0]: "magic"}}))


@pytest.mark.parametrize("name", ["attack_heatmap", "attack_curves", "fraction_lines", "detection_scores"])
def test_a_mean_outside_its_interval_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: a mean lies outside its interval"):
        draw(name, FIGURES[name][0]().assign(high=0.1))


def test_aggregators_and_kinds_of_hospitals_differ_in_more_than_colour():
    looks = [plotting.look(name) for name in AGGREGATOR_LABELS]
    assert [look.label for look in looks] == list(AGGREGATOR_LABELS.values())
    for values in ([look.marker for look in looks], [(look.colour, str(look.linestyle)) for look in looks]):
        assert len(set(values)) == len(looks)
    bad, honest = plotting.look("attacker"), plotting.look("honest")
    assert bad.colour != honest.colour and bad.marker != honest.marker


def test_the_heatmap_has_a_cell_an_attack_and_aggregator_in_their_order():
    frame = grid()
    figure = draw("attack_heatmap", frame, chance=0.25)
    assert titles(figure)[:2] == list(PANELS) and not figure.legends
    ax = figure.axes[0]
    assert ticks(ax.xaxis) == RULES_IN_ORDER and ticks(ax.yaxis) == IN_ORDER
    cell = frame.query("panel == 'IID' and attack == 'sign_flip' and aggregator == 'krum'").iloc[0]
    inside = [text.get_text() for text in ax.texts if tuple(np.round(text.get_position())) == (2, 1)]
    assert inside == [f"{cell['mean']:.2f}", f"{cell['low']:.2f} to {cell['high']:.2f}"]
    assert len(ax.patches) == 9 and not hatched(ax)
    bar = figure.axes[-1]
    assert bar.get_xlabel() == "Balanced accuracy (test): mean of 5 seeds; below it the 95 % interval over seeds"
    assert words(bar) == ["chance 0.25"] and bar.get_xlim() == (0.25, frame["mean"].max())


def test_cells_of_the_heatmap_that_were_not_run_say_so():
    frame = grid()
    frame.loc[0, ["mean", "low", "high", "seeds"]] = np.nan  # IID, sign flip, Krum
    figure = draw("attack_heatmap", frame.drop(index=4))  # IID, no attack, mean
    cells = {tuple(np.round(np.add(patch.get_xy(), (0.49, 0.48)))) for patch in hatched(figure.axes[0])}
    assert cells == {(2, 1), (0, 0)}
    said = {text.get_position() for text in figure.axes[0].texts if text.get_text() == "not run"}
    assert said == cells and "not run" not in words(figure.axes[1])
    with pytest.raises(ValueError, match="sign_flip with krum has 5 seeds and no mean; expected a mean, or no seeds"):
        draw("attack_heatmap", frame.fillna({"seeds": 5}))


def test_cells_of_fewer_seeds_say_so():
    frame = grid()
    frame.loc[0, ["low", "high", "seeds"]] = [np.nan, np.nan, 1]
    frame.loc[1, "seeds"] = 3
    said = words(draw("attack_heatmap", frame).axes[0])
    assert "1 seed" in said and sum("\n3 seeds" in text for text in said) == 1
    figure = draw("attack_heatmap", frame.assign(low=np.nan, high=np.nan, seeds=1))
    assert figure.axes[-1].get_xlabel() == "Balanced accuracy (test): one seed"
    assert len(words(figure.axes[0])) == 9


def test_values_that_are_alike_do_not_get_all_colours():
    frame = grid().assign(low=0.8, mean=np.linspace(0.82, 0.84, 18), high=0.9)
    assert draw("attack_heatmap", frame).axes[-1].get_xlim() == pytest.approx((0.82, 1.02))


def test_letters_read_on_every_colour_of_the_heatmap():
    """The contrast of WCAG 2.1, level AA; and brightness rises with the value, so that grey print keeps the order."""
    frame = grid().query("panel == 'IID'").assign(low=np.nan, high=np.nan, mean=np.linspace(0, 1, 9))
    ax = draw("attack_heatmap", frame).axes[0]
    found = []
    for text in ax.texts:
        x, y = np.round(text.get_position())
        patch = next(p for p in ax.patches if np.allclose(np.add(p.get_xy(), (0.49, 0.48)), (x, y)))
        found.append((float(text.get_text()), contrast(text.get_color(), patch.get_facecolor()), patch.get_facecolor()))
    assert min(ratio for _, ratio, _ in found) >= 4.5
    bright = [contrast("black", colour) for _, _, colour in sorted(found)]
    assert (np.diff(bright) > 0).all() and {to_hex(text.get_color()) for text in ax.texts} == {"#000000", "#ffffff"}


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_letters_read_on_any_colour(colour):
    assert contrast(text_colour(colour), colour) >= 4.5


def test_the_rounds_have_a_panel_an_attack_and_a_line_an_aggregator():
    figure = draw("attack_curves")
    assert titles(figure) == IN_ORDER and legend_texts(figure) == [*RULES_IN_ORDER, "95 % interval over seeds"]
    assert figure.get_supxlabel() == "Communication round" and figure.get_supylabel() == "Balanced accuracy (test)"
    for ax in figure.axes:
        looks = [plotting.look(name) for name in ("mean", "coordinate_median", "krum")]
        assert [line.get_marker() for line in ax.lines] == [look.marker for look in looks]
        assert len(ax.collections) == 3 and not hatched(ax) and ax.get_xlabel() == ""
        np.testing.assert_allclose(ax.lines[0].get_ydata(), 0.3 + 0.02 * np.arange(1, 13))
    sure = draw("attack_curves", rounds().assign(low=np.nan, high=np.nan))
    assert legend_texts(sure) == RULES_IN_ORDER


def test_rounds_in_two_partitions_are_panels_of_their_own():
    both = pd.concat([rounds().assign(panel=panel) for panel in PANELS])
    figure = draw("attack_curves", both)
    assert titles(figure) == [f"{panel}: {attack}" for panel in PANELS for attack in IN_ORDER] and on_its_page(figure)
    with pytest.raises(ValueError, match="attack_curves: more than one row for attack"):
        draw("attack_curves", both.drop(columns="panel"))


def test_a_long_label_stays_on_the_page_of_one_small_panel():
    one = rounds().query("attack == 'clean'")
    assert on_its_page(draw("attack_curves", one, value_label="Share of marked test images that are called the target"))


def test_rounds_that_were_not_run_are_named():
    frame = rounds().query("not (attack == 'clean' and aggregator == 'krum')")
    frame.loc[frame["attack"] == "a_little", "mean"] = np.nan
    figure = draw("attack_curves", frame)
    clean, flip, little = figure.axes
    assert clean.get_xlabel() == "not run: Krum" and len(clean.lines) == 2
    assert flip.get_xlabel() == "" and not hatched(flip)
    assert words(little) == ["not run"] and len(hatched(little)) == 1 and not little.lines
    assert on_its_page(figure) and legend_texts(figure)[:3] == RULES_IN_ORDER


def test_fractions_are_percent_with_the_assumed_one_marked():
    figure = draw("fraction_lines", assumed=0.3)
    assert titles(figure) == IN_ORDER and figure.get_supxlabel() == "Bad hospitals (% of all)"
    assert legend_texts(figure) == [
        *RULES_IN_ORDER, "95 % interval over seeds", "what the rules are set for (30 %)"
    ]  # fmt: skip
    ax = figure.axes[0]
    assert ticks(ax.xaxis) == ["10", "30", "40"]
    *lines, assumed = ax.lines
    assert list(assumed.get_xdata()) == [30, 30] and assumed.is_dashed()
    np.testing.assert_allclose(lines[1].get_xdata(), [10, 30, 40])
    np.testing.assert_allclose(lines[1].get_ydata(), [0.8, 0.6, 0.5])
    # Side by side, and each nearer to its own fraction than to another.
    assert len({line.get_xdata()[0] for line in lines}) == 3
    assert max(abs(line.get_xdata()[0] - 10) for line in lines) < 5
    assert len(ax.collections) == 3 and all(len(bars.get_segments()) == 3 for bars in ax.collections)
    assert len(draw("fraction_lines").axes[0].lines) == 3


def test_fractions_that_were_not_run_break_the_line_and_are_named():
    frame = fractions().query("not (attack == 'clean' and fraction == 0.3)")
    frame = frame.query("not (attack == 'sign_flip' and aggregator != 'mean' and fraction != 0.3)")
    frame.loc[frame["attack"] == "a_little", "mean"] = np.nan
    clean, flip, little = draw("fraction_lines", frame).axes
    (strip,) = hatched(clean)
    assert strip.get_x() < 30 < strip.get_x() + strip.get_width() and words(clean) == ["not run"]
    np.testing.assert_allclose(clean.lines[0].get_ydata(), [0.8, np.nan, 0.5])
    assert flip.get_xlabel().replace("\n", " ") == "not run at 10, 40 %: Coordinate median, Krum" and not hatched(flip)
    assert words(little) == ["not run"] and not little.lines
    for options, change, said in (
        ({"assumed": 30}, {}, "assumed goes up to 30; expected 0 to 1. Is it percent"),
        ({}, {"fraction": fractions()["fraction"] * 100}, "column 'fraction' goes up to 40; expected 0 to 1"),
    ):
        with pytest.raises(ValueError, match=f"fraction_lines: {said}"):
            draw("fraction_lines", fractions().assign(**change), **options)


def test_updates_show_who_is_bad_and_who_is_flagged():
    frame = updates()
    figure = draw("update_map", frame)
    assert legend_texts(figure) == ["Bad hospital", "Honest hospital", "flagged"]
    assert titles(figure) == ["Round 1", "Round 10", "", "", "", ""]
    assert [ax.get_ylabel().replace("\n", " ") for ax in figure.axes[::2]] == IN_ORDER
    ax, here = figure.axes[2], frame.query("attack == 'sign_flip' and round == 1")
    honest, bad, rings = ax.lines
    assert honest.get_marker() != bad.get_marker() and honest.get_color() != bad.get_color()
    for line, part in ((honest, "attacker == 0"), (bad, "attacker == 1"), (rings, "flagged == 1")):
        np.testing.assert_allclose(line.get_xydata(), here.query(part)[["pca_0", "pca_1"]])
    assert rings.get_markerfacecolor() == "none" and len(rings.get_xdata()) == 1
    for ax in figure.axes:  # each hospital is named once
        assert sorted(", ".join(words(ax)).replace("\n", " ").replace(",", "").split()) == [str(c) for c in range(10)]


def test_updates_that_lie_together_share_a_text_and_others_do_not():
    frame = updates().query("attack == 'clean' and round == 1").iloc[:4].assign(pca_1=0.0)
    ax = draw("update_map", frame.assign(pca_0=[0.0, 0.1, 5.0, 10.0])).axes[0]
    assert words(ax) == ["0, 1", "2", "3"]
    assert [text.xy for text in ax.texts] == [(0.1, 0.0), (5.0, 0.0), (10.0, 0.0)]
    assert words(draw("update_map", frame.iloc[:1]).axes[0]) == ["0"]
    assert words(draw("update_map", frame.assign(pca_0=1.0)).axes[0]) == ["0, 1, 2, 3"]


def test_updates_that_are_not_there_are_said():
    frame = updates().query("not (attack == 'clean' and round == 10)")
    frame.loc[frame["client"].isin([3, 7]) & (frame["attack"] == "sign_flip"), ["pca_0", "pca_1"]] = np.nan
    frame.loc[(frame["attack"] == "a_little") & (frame["round"] == 1), ["pca_0", "pca_1"]] = np.nan
    figure = draw("update_map", frame)
    assert words(figure.axes[1]) == ["not run"] and len(hatched(figure.axes[1])) == 1
    assert figure.axes[2].get_xlabel() == "left out: 3, 7" and len(figure.axes[2].lines[1].get_xdata()) == 0
    assert words(figure.axes[4]) == ["no components"] and on_its_page(figure)
    absent = updates().query("not (attack == 'clean' and round == 10 and client == 4)")
    assert [ax.get_xlabel() for ax in draw("update_map", absent).axes] == ["", "left out: 4", "", "", "", ""]
    with pytest.raises(ValueError, match="update_map: column 'flagged' holds .*; expected 0 and 1"):
        draw("update_map", updates().assign(flagged=0.5))


def test_detection_has_a_column_a_metric_and_a_marker_a_detector():
    figure = draw("detection_scores")
    assert [title.split(" (")[0] for title in titles(figure)] == ["Precision", "Recall", "False alarms"]
    assert legend_texts(figure) == ["PCA of the last layer", "Cosine distance", "95 % interval over seeds"]
    assert ticks(figure.axes[0].yaxis) == IN_ORDER
    for ax in figure.axes:
        assert not ax.texts
        dots = [line for line in ax.lines if len(line.get_xdata()) == 1]
        assert len(dots) == 6 and len({dot.get_ydata()[0] for dot in dots}) == 6
        looks = {(dot.get_marker(), dot.get_color()) for dot in dots}
        assert len(looks) == len({marker for marker, _ in looks}) == len({colour for _, colour in looks}) == 2
        assert {tuple(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2} == {(0.4, 0.7)}


def test_detection_in_two_partitions_is_two_blocks():
    both = pd.concat([scores().assign(panel=panel, mean=mean) for panel, mean in zip(PANELS, (0.5, 0.6), strict=True)])
    figure = draw("detection_scores", both)
    assert on_its_page(figure) and [ax.get_ylabel() for ax in figure.axes[::3]] == list(PANELS)
    for ax, mean in zip(figure.axes, [0.5] * 3 + [0.6] * 3, strict=True):
        assert {line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1} == {mean}


def test_detection_without_a_value_says_why():
    frame = scores().query("not (attack == 'a_little' and detector == 'pca')")
    frame.loc[(frame["attack"] == "sign_flip") & (frame["detector"] == "cosine"), ["mean", "low", "high"]] = np.nan
    precision, recall, alarms = draw("detection_scores", frame).axes
    assert words(precision) == ["Cosine: no flag", "PCA: not run"]
    assert words(recall) == ["Cosine: none to find", "PCA: not run"]
    assert words(alarms) == ["Cosine: not run", "PCA: not run"]
    assert [len(hatched(ax)) for ax in (precision, recall, alarms)] == [1, 1, 2]
    assert all(sum(len(line.get_xdata()) == 1 for line in ax.lines) == 4 for ax in (precision, recall, alarms))
    part = scores().query("detector == 'pca' or attack == 'clean' and metric == 'false_alarms'")
    clean = draw("detection_scores", part)
    assert [words(ax)[:1] for ax in clean.axes] == [["Cosine: none to find"]] * 2 + [["Cosine: not run"]]
    # A detector that never flags anybody leaves a column of words, not an error.
    assert len(words(draw("detection_scores", frame.query("metric == 'precision'").assign(mean=np.nan)).axes[0])) == 6
    for change, said in (
        ({"mean": 2.0, "high": 3.0}, "column 'mean' goes from 2 to 2; expected 0 to 1"),
        ({"metric": "auc"}, "metric is 'auc'; expected one of precision, recall, false_alarms"),
        ({"detector": "eye"}, "detector is 'eye'; expected one of pca, cosine"),
    ):
        with pytest.raises(ValueError, match=f"detection_scores: {said}"):
            one = scores().drop_duplicates(["attack"])
            draw("detection_scores", one.assign(**change))


def test_unusual_hospitals_are_dots_about_a_zero_line():
    figure = draw("unusual_hospitals")
    assert titles(figure) == RULES_IN_ORDER
    assert legend_texts(figure) == ["a hospital in one seed", "as under the mean"]
    assert "total variation distance" in figure.get_supxlabel()
    assert figure.get_supylabel().replace("\n", " ") == "Own test accuracy minus that under the mean"
    ax, rows = figure.axes[2], unusual().query("aggregator == 'krum'")
    zero, dots = ax.lines
    assert list(zero.get_ydata()) == [0, 0] and dots.get_marker() == plotting.look("krum").marker
    np.testing.assert_allclose(dots.get_xydata(), rows[["distance", "difference"]])
    assert all(ax.get_ylim() == figure.axes[0].get_ylim() for ax in figure.axes)


def test_unusual_hospitals_get_a_line_where_there_is_a_fit():
    lines = fits().query("aggregator != 'mean'").iloc[::-1]
    figure = draw("unusual_hospitals", fits=lines)
    assert legend_texts(figure)[2:] == ["least-squares line", "95 % bootstrap band"] and on_its_page(figure)
    assert [len(ax.lines[2].get_xdata()) for ax in figure.axes] == [0, 3, 3]
    np.testing.assert_allclose(figure.axes[2].lines[2].get_xydata(), [[0, 0], [0.2, -0.04], [0.45, -0.09]])
    for change, said in (
        (fits().assign(high=-1.0), "a mean lies outside its interval"),
        (fits().assign(aggregator="fltrust"), "aggregator is 'fltrust'; expected one of mean, coordinate_median, krum"),
        (fits().drop(columns="low"), "column 'low' is missing"),
    ):
        with pytest.raises(ValueError, match=rf"unusual_hospitals \(fits\): {said}"):
            draw("unusual_hospitals", fits=change)


def test_unusual_hospitals_of_a_rule_that_was_not_run():
    frame = unusual()
    frame.loc[frame["aggregator"] == "krum", "difference"] = np.nan
    figure = draw("unusual_hospitals", frame, fits=fits().query("aggregator != 'krum'"))
    assert words(figure.axes[2]) == ["not run"] and len(hatched(figure.axes[2])) == 1 and not figure.axes[2].lines
    for change, said in (
        ({"distance": 1.5}, "column 'distance' goes from 1.5 to 1.5; expected 0 to 1"),
        ({"difference": -7.0}, "column 'difference' goes from -7 to -7; expected -1 to 1"),
    ):
        with pytest.raises(ValueError, match=f"unusual_hospitals: {said}"):
            draw("unusual_hospitals", unusual().assign(**change))


def test_group_errors_have_a_line_a_number_of_bad_hospitals():
    figure = draw("group_error")
    assert titles(figure) == ["Coordinate median", "Krum"]
    assert legend_texts(figure) == ["no bad hospital", "1 bad hospital", "3 bad hospitals"]
    ax = figure.axes[0]
    assert ax.get_yscale() == "log" and ticks(ax.xaxis) == ["1", "2", "5", "10"]
    lines = [line for line in ax.lines if len(line.get_xdata())]
    assert len(lines) == 3 and len({line.get_marker() for line in lines}) == 3
    np.testing.assert_allclose(lines[2].get_ydata(), 0.02 + 0.9 * np.array([1, 2, 5, 10]))
    assert titles(draw("group_error", groups().replace({"rule": {"krum": "Norm bound"}})))[1] == "Norm bound"


def test_group_errors_of_zero_are_hollow_below_the_scale():
    frame = groups()
    frame.loc[frame["attackers"] == 0, "error"] = 0.0
    figure = draw("group_error", frame)
    assert legend_texts(figure)[-1] == "no error (0, below the scale)"
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert len(hollow) == 1 and 0 < hollow[0].get_ydata().max() < frame["error"][frame["error"] > 0].min()
    assert on_its_page(draw("group_error", frame.assign(error=0.0)))
    for bad in (-1.0, np.inf):
        with pytest.raises(ValueError, match=f"column 'error' goes from {bad:g} to {bad:g}; expected finite"):
            draw("group_error", groups().assign(error=bad))


def test_groups_that_were_not_run_are_hatched_or_named():
    frame = groups().query("not (rule == 'krum' and group_size >= 5)")
    frame.loc[(frame["rule"] != "krum") & (frame["group_size"] == 10) & (frame["attackers"] == 3), "error"] = np.nan
    median, krum = draw("group_error", frame).axes
    assert median.get_xlabel() == "not run at size 10: 3 bad hospitals" and not hatched(median)
    assert words(krum) == ["not run"] * 2 and [round(p.get_x() + p.get_width() / 2) for p in hatched(krum)] == [2, 3]
