"""Figures of the deployed federation from small made-up tables: what is drawn, what is refused."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from fl_utils import plotting
from tests.unit.made_figures import (
    check_a_missing_column_is_named, check_an_empty_table_is_refused, check_double_rows_are_refused,
    legend_clear_of_data, legend_texts, on_its_page, ticks,
)  # fmt: skip

#: Not in alphabetical order, so that a figure that sorts them would show.
LABELS = ("TLS and keys", "No TLS, no keys", "TLS, keys and SecAgg+")
KILLED = {"killed_after": 5, "back_after": 11, "hospital": "2"}


def presence(rounds=20, clients=4, gone=range(6, 13)):
    rows = [
        (number, str(client), not (client == 2 and number in gone))
        for client, number in itertools.product(range(clients), range(1, rounds + 1))
    ]
    return pd.DataFrame(rows, columns=["round", "client", "counted"])


def curves(rounds=20, first=0, methods=("deployed", "fedavg")):
    rows = [
        (number, 0.3 + 0.5 * number / rounds + 0.02 * shift, method)
        for shift, method in enumerate(methods) for number in range(first, rounds + 1)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["round", "value", "method"])


def seconds(rounds=5):
    """Skewed, so that a mean is not a median."""
    rows = [
        (label, number, 1.0 + 0.1 * k + skew, 0.3 * (k + 1) + 2 * skew)
        for k, label in enumerate(LABELS) for number, skew in enumerate(np.linspace(0, 0.6, rounds) ** 2, start=2)
    ]  # fmt: skip
    df = pd.DataFrame(rows, columns=["label", "round", "work_s", "over_s"])
    return df.assign(duration_s=df["work_s"] + df["over_s"])


def interrupted(frame=None, lines=None, **options):
    frame, lines = (presence() if frame is None else frame), (curves() if lines is None else lines)
    return plotting.interrupted_training(frame, lines, **KILLED | options)


def words_apart(figure):
    """No two words of the upper axes, or of the legend above it, lie on each other; none lies in an axes."""
    figure.draw_without_rendering()
    words = [text.get_window_extent() for text in figure.axes[0].texts]
    boxes = [*words, *(legend.get_window_extent() for legend in figure.legends)]
    apart = not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    return apart and not any(box.overlaps(ax.get_window_extent()) for box in words for ax in figure.axes)


def cells(ax, hatched):
    """(hospital's row, round) of the filled or of the hatched cells."""
    found = [bar for bar in ax.patches if bool(bar.get_hatch()) == hatched]
    return {(round(bar.get_y() + bar.get_height() / 2), round(bar.get_x() + bar.get_width() / 2)) for bar in found}


def test_the_deployed_federation_has_a_look_of_its_own():
    deployed = plotting.look("deployed")
    assert deployed.label == "Real processes (Flower)"
    others = [plotting.look(name) for name in ("fedavg", "centralized", "local")]
    for value in ("colour", "marker", "linestyle"):
        assert getattr(deployed, value) not in [getattr(other, value) for other in others]


@pytest.mark.parametrize(
    ("rounds", "killed_after", "back_after"),
    [(6, 2, 4), (6, 1, 2), (12, 10, 11), (20, 5, 11), (40, 1, 2), (40, 1, 39), (40, 5, 6), (40, 38, 40), (40, 0, 40)],
)
def test_an_interrupted_training_fits_its_page_and_no_word_lies_on_another(rounds, killed_after, back_after):
    frame = presence(rounds, gone=range(killed_after + 1, back_after + 1))
    figure = interrupted(frame, curves(rounds, killed_after % 2), killed_after=killed_after, back_after=back_after)
    assert on_its_page(figure) and legend_clear_of_data(figure) and words_apart(figure)
    assert figure.get_suptitle() == ""


def test_each_update_is_a_cell_that_is_filled_where_it_counted():
    frame = presence()
    lower = interrupted(frame).axes[1]
    assert len(lower.patches) == len(frame) == 80
    for counted in (True, False):
        rows = frame[frame["counted"] == counted]
        expected = set(zip(rows["client"].astype(int), rows["round"], strict=True))
        assert cells(lower, hatched=not counted) == expected
    assert ticks(lower.yaxis) == [f"Hospital {client}" for client in range(4)] and lower.yaxis_inverted()
    assert {to_hex(bar.get_facecolor()).upper() for bar in lower.patches if not bar.get_hatch()} == {
        plotting.look("deployed").colour
    }


def test_hospitals_stand_in_the_order_of_the_table():
    lower = interrupted(presence().iloc[::-1]).axes[1]
    assert ticks(lower.yaxis) == [f"Hospital {client}" for client in (3, 2, 1, 0)]
    assert {row for row, _ in cells(lower, hatched=True)} == {1}


def test_hospitals_may_be_named_by_number_or_in_words():
    named = presence().assign(client=lambda df: "Hospital " + df["client"])
    upper, lower = interrupted(named, hospital="Hospital 2").axes
    assert ticks(lower.yaxis) == [f"Hospital {client}" for client in range(4)]
    assert upper.texts[0].get_text() == "hospital 2 killed"


def test_the_lines_carry_the_values_in_the_looks_of_their_methods():
    figure = interrupted(lines=curves().iloc[::-1], y_label="Recall")
    upper, lower = figure.axes
    assert upper.get_ylabel() == "Recall" and lower.get_xlabel() == "Communication round" and upper.get_xlabel() == ""
    assert legend_texts(figure) == [
        "Federated (FedAvg), undisturbed", "Real processes (Flower), interrupted", "update counted", "did not count",
    ]  # fmt: skip
    drawn = {line.get_marker(): line for line in upper.lines if len(line.get_xdata()) > 2}
    for method, rows in curves().groupby("method"):
        look = plotting.look(method)
        line = drawn[look.marker]
        assert line.get_color() == look.colour
        np.testing.assert_array_equal(line.get_xdata(), rows["round"])
        np.testing.assert_array_equal(line.get_ydata(), rows["value"])
    assert len(drawn) == 2 and upper.get_xlim() == lower.get_xlim() == (-0.5, 20.5)
    assert upper.get_window_extent().height > lower.get_window_extent().height


def test_lines_between_the_rounds_say_when_the_hospital_was_gone():
    upper, lower = interrupted().axes
    for ax in (upper, lower):
        marks = [line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1]
        assert marks == [5.5, 11.5]
    assert [(text.get_text(), text.xy[0]) for text in upper.texts] == [("hospital 2 killed", 5.5), ("started again", 11.5)]


@pytest.mark.parametrize("column", ["round", "client", "counted"])
def test_a_missing_column_of_the_presence_is_named(column):
    check_a_missing_column_is_named("interrupted_training", presence(), column, curves=curves(), **KILLED)


@pytest.mark.parametrize("column", ["round", "value", "method"])
def test_a_missing_column_of_the_curves_is_named(column):
    with pytest.raises(ValueError, match=rf"interrupted_training \(curves\): column '{column}' is missing"):
        interrupted(lines=curves().drop(columns=column))


def test_empty_tables_and_double_rows_of_an_interrupted_training_are_refused():
    check_an_empty_table_is_refused("interrupted_training", presence(), curves=curves(), **KILLED)
    check_double_rows_are_refused("interrupted_training", presence(), curves=curves(), **KILLED)
    with pytest.raises(ValueError, match=r"interrupted_training \(curves\): the table .*no rows"):
        interrupted(lines=curves().iloc[:0])
    with pytest.raises(ValueError, match=r"interrupted_training \(curves\): more than one row for method 'deployed', round 0"):
        interrupted(lines=pd.concat([curves(), curves().iloc[:1]]))


def test_a_method_without_a_look_is_refused():
    with pytest.raises(ValueError, match="There is no look for 'magic'; known are .*deployed"):
        interrupted(lines=curves(methods=("deployed", "magic")))


@pytest.mark.parametrize(
    ("frames", "options", "said"),
    [
        ({"frame": presence().iloc[1:]}, {}, "79 rows for 4 hospitals and 20 rounds; expected one a hospital and round"),
        ({"frame": presence().assign(round=lambda df: df["round"] - 1)}, {}, "round 0; expected whole numbers from 1"),
        ({"frame": presence().replace({"round": {3: 3.5}})}, {}, "round 3.5; expected whole numbers from 1 to 20"),
        ({"frame": presence().assign(counted="yes")}, {}, "'counted' holds 'yes'; expected True or False"),
        ({"frame": presence().assign(counted=np.nan)}, {}, "'counted' holds nan; expected True or False"),
        ({"lines": curves(21)}, {}, r"\(curves\): round 21; expected whole numbers from 0 to 20"),
        ({"lines": curves().assign(value=np.nan)}, {}, r"\(curves\): column 'value' has 42 values that are not finite"),
        ({}, {"hospital": "4"}, "hospital is '4'; expected one of 0, 1, 2, 3"),
        ({}, {"killed_after": 11}, "killed_after is 11, back_after 11; expected 0 <= killed_after < back_after <= 20"),
        ({}, {"back_after": 21}, "killed_after is 5, back_after 21; expected"),
        ({}, {"killed_after": -1}, "killed_after is -1, back_after 11; expected"),
    ],
)  # fmt: skip
def test_an_interruption_that_would_mislead_is_refused(frames, options, said):
    with pytest.raises(ValueError, match=f"interrupted_training.*{said}"):
        interrupted(**frames, **options)


@pytest.mark.parametrize("labels", [LABELS, LABELS[:1]])
@pytest.mark.parametrize("rounds", [1, 10, 40])
def test_the_seconds_fit_their_page(labels, rounds):
    figure = plotting.round_seconds(seconds(rounds).query("label in @labels"))
    assert on_its_page(figure) and legend_clear_of_data(figure) and figure.get_suptitle() == ""


def test_the_bars_are_medians_one_upon_the_other():
    frame = seconds()
    figure = plotting.round_seconds(frame)
    (ax,) = figure.axes
    assert ticks(ax.yaxis) == list(LABELS) and ax.yaxis_inverted()
    assert ax.get_xlabel() == "Seconds of a round, median of 5 rounds"
    assert legend_texts(figure) == [
        "slowest hospital's own work", "the round's time over it", "a single round", "target: work + 2 s",
    ]  # fmt: skip
    work, over = ax.patches[:3], ax.patches[3:]
    medians = frame.groupby("label")[["work_s", "over_s"]].median().loc[list(LABELS)]
    np.testing.assert_allclose([bar.get_width() for bar in work], medians["work_s"])
    np.testing.assert_allclose([bar.get_width() for bar in over], medians["over_s"])
    assert [bar.get_x() for bar in work] == [0, 0, 0]
    np.testing.assert_allclose([bar.get_x() for bar in over], medians["work_s"])
    assert all(bar.get_hatch() for bar in over) and not any(bar.get_hatch() for bar in work)
    assert [text.get_text() for text in ax.texts] == [f"+{value:.2f} s" for value in medians["over_s"]]


def test_each_round_is_a_dot_in_its_bar_and_the_target_is_measured_from_the_same_work():
    frame = seconds()
    ax = plotting.round_seconds(frame, target_s=0.5).axes[0]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    targets = [line for line in ax.lines if line.get_marker() == "None"]
    for y, label in enumerate(LABELS):
        rows = frame[frame["label"] == label]
        np.testing.assert_allclose(dots[y].get_xdata(), rows["work_s"].median() + rows["over_s"])
        heights = dots[y].get_ydata()
        assert len(set(heights)) == len(rows) and np.abs(heights - y).max() < 0.31
        np.testing.assert_allclose(targets[y].get_xdata(), rows["work_s"].median() + 0.5)
        # A dot right of the line is a round that misses the target.
        assert ((dots[y].get_xdata() > targets[y].get_xdata()[0]) == (rows["over_s"] > 0.5)).all()
    assert len(dots) == len(targets) == 3


@pytest.mark.parametrize("target_s", np.linspace(0.2, 2.4, 12))
def test_the_numbers_keep_clear_of_dots_bars_and_targets(target_s):
    figure = plotting.round_seconds(seconds(), target_s=target_s)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    for text in ax.texts:
        box = text.get_window_extent()
        assert not any(box.overlaps(bar.get_window_extent()) for bar in ax.patches)
        for line in ax.lines:
            x, y = ax.transData.transform(line.get_xydata()).T
            beside = (y.min() <= box.y1) & (y.max() >= box.y0)
            assert not (beside and ((x >= box.x0) & (x <= box.x1)).any())
    assert on_its_page(figure) and max(text.get_window_extent().x1 for text in ax.texts) <= ax.get_window_extent().x1 + 1


def test_without_a_target_nothing_is_dotted_and_uneven_rounds_are_not_counted():
    figure = plotting.round_seconds(seconds().iloc[1:], target_s=None)
    assert legend_texts(figure)[-1] == "a single round" and len(figure.axes[0].lines) == 3
    assert figure.axes[0].get_xlabel() == "Seconds of a round, median"


@pytest.mark.parametrize("column", ["label", "round", "duration_s", "work_s", "over_s"])
def test_a_missing_column_of_the_seconds_is_named(column):
    check_a_missing_column_is_named("round_seconds", seconds(), column)


def test_empty_and_double_seconds_are_refused():
    check_an_empty_table_is_refused("round_seconds", seconds())
    check_double_rows_are_refused("round_seconds", seconds())


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"over_s": np.inf}, {}, "column 'over_s' has 15 values that are not finite"),
        ({"over_s": -0.5}, {}, "column 'over_s' goes down to -0.5; expected 0 or more"),
        ({"work_s": -1.0}, {}, "column 'work_s' goes down to -1; expected 0 or more"),
        ({"duration_s": 9.0}, {}, "work_s and over_s do not add up to duration_s"),
        ({}, {"target_s": 0}, "target_s is 0; expected above 0 seconds, or None"),
        ({}, {"target_s": float("nan")}, "target_s is nan"),
    ],
)
def test_seconds_that_would_mislead_are_refused(change, options, said):
    with pytest.raises(ValueError, match=f"round_seconds: {said}"):
        plotting.round_seconds(seconds().assign(**change), **options)
