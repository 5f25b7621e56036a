"""Figures of notebook 03 from small made-up tables: what is drawn, what is refused."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fl_utils import plotting
from fl_utils.experiments.cells import ALGORITHMS
from fl_utils.plotting import grid
from tests.unit.made_figures import (
    check_a_missing_column_is_named, check_an_empty_table_is_refused, check_double_rows_are_refused, columns_of,
    legend_texts, on_its_page,
)  # fmt: skip

PANELS = ("Brain MRI", "Chest X-ray")
PARTITIONS = ("IID", "Dirichlet 0.1", "Half of the classes")
METHODS = ("fedavg", "fedprox", "scaffold")


def places(methods=METHODS, partitions=PARTITIONS):
    return [
        {"panel": panel, "partition": partition, "method": method}
        for panel in PANELS for partition in partitions for method in methods
    ]  # fmt: skip


def heatmap():
    frame = pd.DataFrame(places()).assign(mean=0.8, difference=np.tile([np.nan, 0.010, -0.300], 6))
    return frame.assign(significant=frame["method"] == "scaffold")


def ranks():
    return pd.DataFrame(
        {"method": ["fedprox", "fedavg", "scaffold", "fedsgd"], "average_rank": [2.0, 1.2, 2.8, 4.0],
         "critical_difference": 1.0}
    )  # fmt: skip


def shares():
    return pd.DataFrame(places()).assign(share=0.6, low=0.4, high=0.9)


def costs():
    return pd.DataFrame(places()).assign(rounds=12.0, total_rounds=40, total_bytes=3e7, seeds_reached=5, seeds=5)


def spread():
    rows = [place | {"seed": s, "hospital": h, "value": 0.5 + 0.05 * h + 0.01 * s}
            for place in places() for s in range(3) for h in range(1, 5)]  # fmt: skip
    return pd.DataFrame(rows)


def norms():
    models = (("GroupNorm, FedAvg", "norm_cnn_group"), ("BatchNorm, FedAvg", "norm_cnn_batch"))
    rows = [(p, label, model, 0.7, 0.6, 0.8) for p in PARTITIONS[:2] for label, model in models]
    return pd.DataFrame(rows, columns=["panel", "label", "model", "mean", "low", "high"])


def orders():
    frame = pd.DataFrame(places(partitions=PARTITIONS[:1])).assign(
        short=np.tile([0.7, 0.8, 0.6], 2), long=np.tile([0.75, 0.74, 0.61], 2)
    )
    return frame.assign(rounds_short=40, rounds_long=120, kendall_tau=1 / 3)


def gallery():
    rows = [
        (p, client, name, 10 * client + k) for p in PARTITIONS for client in range(1, 5) for k, name in enumerate("ab")
    ]
    frame = pd.DataFrame(rows, columns=["panel", "client", "class_name", "count"])
    return frame.assign(js_distance=0.25, size_gini=0.5)


FIGURES = {
    "grid_heatmap": (heatmap, "panel partition method mean difference significant"),
    "rank_diagram": (ranks, "method average_rank critical_difference"),
    "gap_bars": (shares, "panel partition method share low high"),
    "cost_to_target": (costs, "panel partition method rounds total_rounds total_bytes seeds_reached seeds"),
    "hospital_spread": (spread, "panel partition method seed hospital value"),
    "norm_panel": (norms, "panel label model mean low high"),
    "order_check": (orders, "panel partition method short long rounds_short rounds_long kendall_tau"),
    "partition_gallery": (gallery, "panel client class_name count"),
}


def texts(ax):
    return [text.get_text() for text in ax.texts]


def marks(ax):
    """Single points of an axes: (x, marker, face colour)."""
    return [
        (line.get_xdata()[0], line.get_marker(), to_hex(line.get_markerfacecolor()))
        for line in ax.lines if len(line.get_xdata()) == 1
    ]  # fmt: skip


def no_overlap(figure, ax):
    """No two texts of an axes lie on each other."""
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    return not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[k + 1 :])


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_fits_its_page_whole_and_in_part(name):
    frame = FIGURES[name][0]()
    frames = [frame] + ([frame[frame["panel"] == frame["panel"].iloc[0]]] if "panel" in frame else [frame.iloc[:2]])
    for one in frames:
        figure = getattr(plotting, name)(one)
        assert isinstance(figure, Figure) and figure.get_suptitle() == "" and on_its_page(figure)


@pytest.mark.parametrize(("name", "column"), columns_of(FIGURES))
def test_a_missing_column_is_named(name, column):
    check_a_missing_column_is_named(name, FIGURES[name][0](), column)


@pytest.mark.parametrize("name", FIGURES)
def test_empty_tables_and_double_rows_are_refused(name):
    check_an_empty_table_is_refused(name, FIGURES[name][0]())
    drawn_by = {"norm_panel": "intervals"}.get(name)
    check_double_rows_are_refused(name, FIGURES[name][0](), drawn_by)


@pytest.mark.parametrize("name", ["gap_bars", "cost_to_target", "hospital_spread", "order_check", "rank_diagram"])
def test_a_method_without_a_look_is_refused(name):
    with pytest.raises(ValueError, match="no look for 'fedfoo'"):
        getattr(plotting, name)(FIGURES[name][0]().replace({"method": {"scaffold": "fedfoo"}}))


def test_the_heat_map_writes_score_and_difference_and_marks_what_is_significant():
    figure = plotting.grid_heatmap(heatmap())
    ax = figure.axes[0]
    assert texts(ax)[:3] == ["0.800", "0.800\n+0.010", "0.800\n-0.300*"]
    assert [text.get_fontweight() for text in ax.texts[:3]] == ["normal", "normal", "bold"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["FedAvg", "FedProx", "SCAFFOLD"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(PARTITIONS)
    image = ax.images[0]
    np.testing.assert_allclose(image.get_array()[0], [np.nan, 0.01, -0.3])
    assert image.norm.vmin == -image.norm.vmax and figure.axes[1].images[0].norm is image.norm
    assert no_overlap(figure, ax)
    tiny = plotting.grid_heatmap(heatmap().assign(difference=np.tile([np.nan, -0.0001, 0.5], 6)))
    assert texts(tiny.axes[0])[1] == "0.800\n+0.000"
    with pytest.raises(ValueError, match="no value for fedprox; only FedAvg may have none"):
        plotting.grid_heatmap(heatmap().assign(difference=np.tile([np.nan, np.nan, 0.1], 6)))


def test_colours_end_before_an_outlier_and_the_bar_says_so():
    frame = heatmap().assign(difference=np.tile([np.nan, 0.01, 0.01], 6))
    assert plotting.grid_heatmap(frame).axes[1].images[0].colorbar.extend == "neither"
    frame.loc[1, "difference"] = -0.9
    image = plotting.grid_heatmap(frame).axes[1].images[0]  # the bar belongs to the last panel and is for all
    assert image.colorbar.extend == "both" and image.norm.vmax == grid.LEAST_COLOUR_END


def test_the_heat_map_leaves_blank_what_is_not_there():
    figure = plotting.grid_heatmap(heatmap().drop(index=4))
    assert len(figure.axes[0].texts) == 8
    assert figure.axes[0].images[0].get_array().mask[1].tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("found", "distance", "groups"),
    [
        ([1, 2, 3], 0.5, []),
        ([1, 2, 3], 5, [(0, 2)]),
        ([1.2, 2.0, 2.8, 4.0], 1.0, [(0, 1), (1, 2)]),
        ([1, 1, 4, 4], 1, [(0, 1), (2, 3)]),
        ([1, 2, 2.5, 3.4], 1.5, [(0, 2), (1, 3)]),
    ],
)
def test_groups_are_the_longest_runs_within_the_critical_difference(found, distance, groups):
    assert grid.rank_groups(found, distance) == groups


def test_the_rank_diagram_joins_what_is_not_told_apart():
    figure = plotting.rank_diagram(ranks())
    ax = figure.axes[0]
    bars = [tuple(np.round(line.get_xdata(), 2)) for line in ax.lines if line.get_linewidth() == 4]
    assert bars == [(1.15, 2.05), (1.95, 2.85)]
    assert {"FedAvg  1.20", "FedProx  2.00", "2.80  SCAFFOLD", "4.00  FedSGD"} <= set(texts(ax))
    assert "critical difference 1.00" in texts(ax) and no_overlap(figure, ax)
    many = pd.DataFrame({"method": ALGORITHMS, "average_rank": np.linspace(4.5, 5.5, 9), "critical_difference": 3.8})
    figure = plotting.rank_diagram(many)
    assert no_overlap(figure, figure.axes[0])
    with pytest.raises(ValueError, match="'critical_difference' must be the same"):
        plotting.rank_diagram(ranks().assign(critical_difference=[1, 1, 1, 2]))


def test_recovered_shares_say_what_is_clipped_open_or_not_there():
    plain = plotting.gap_bars(shares())
    assert legend_texts(plain) == ["share and 95 % interval over seeds"]
    assert plain.get_supxlabel() == "Share of the gap between hospitals alone (0) and centralized (1)"
    frame = shares()
    frame.loc[0, ["share", "low", "high"]] = np.nan
    frame.loc[1, ["low", "high"]] = np.nan
    frame.loc[2, ["share", "low", "high"]] = [1.2, -0.7, 3.1]
    frame.loc[3, ["share", "low", "high"]] = [-2.0, -3.0, -1.0]
    figure = plotting.gap_bars(frame)
    assert legend_texts(figure) == [
        "share and 95 % interval over seeds", "interval without end", "goes on beyond the axis"
    ]
    first, second = figure.axes[:2]
    assert texts(first) == ["no gap"]
    assert marks(first) == [
        (0.6, "D", "#ffffff"), (1.2, "*", plotting.look("scaffold").colour), (-0.5, 8, "#000000"), (1.5, 9, "#000000")
    ]
    # Wholly beyond the axis: an arrow head, and no dot that would pretend a place.
    assert [x for x, *_ in marks(second)] == [-0.5, 0.6, 0.6]
    ends = [line.get_xdata() for line in first.lines if line.get_linewidth() == 2.5]
    np.testing.assert_allclose(ends, [[-0.5, 1.5]])


def test_cost_is_hollow_where_the_target_was_not_reached():
    assert legend_texts(plotting.cost_to_target(costs())) == ["reached by the mean over seeds"]
    frame = costs()
    frame.loc[0, ["rounds", "total_bytes", "seeds_reached"]] = [np.nan, np.nan, 2]
    figure = plotting.cost_to_target(frame)
    assert marks(figure.axes[0])[:2] == [(40, "o", "#ffffff"), (12, "D", plotting.look("fedprox").colour.lower())]
    assert texts(figure.axes[0]) == ["2/5"] and texts(figure.axes[1]) == []
    assert legend_texts(figure) == ["reached by the mean over seeds", "not reached when training ended", "3/5: seeds that reach it"]
    figure = plotting.cost_to_target(frame, quantity="total_bytes")
    assert figure.axes[0].get_xscale() == "log" and figure.get_supxlabel().startswith("MB sent and received")
    assert [x for x, *_ in marks(figure.axes[0])] == [60, 30, 30]
    never = frame.assign(rounds=np.nan, total_bytes=np.nan, seeds_reached=0)
    for quantity in ("rounds", "total_bytes"):
        figure = plotting.cost_to_target(never, quantity=quantity)
        assert {face for _, _, face in marks(figure.axes[0])} == {"#ffffff"}
    with pytest.raises(ValueError, match="quantity is 'hours'"):
        plotting.cost_to_target(costs(), quantity="hours")


def test_hospital_spread_marks_the_worst_of_each_seed():
    figure = plotting.hospital_spread(spread())
    worst = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert len(worst) == 3 and worst[0].get_xdata() == pytest.approx([0.55, 0.56, 0.57])
    assert legend_texts(figure) == ["a hospital in one seed", "worst hospital of a seed", "mean"]
    frame = spread()
    frame.loc[frame["hospital"] == 1, "value"] = np.nan
    worst = [line for line in plotting.hospital_spread(frame).axes[0].lines if line.get_marker() == "x"]
    assert worst[0].get_xdata() == pytest.approx([0.6, 0.61, 0.62])
    with pytest.raises(ValueError, match="no hospital has enough test images"):
        plotting.hospital_spread(spread().assign(value=np.nan))


def test_norm_panel_draws_each_model_in_its_look():
    ax = plotting.norm_panel(norms()).axes[0]
    dots = [line for line in ax.lines if line.get_linestyle() == "None"]
    assert [dot.get_marker() for dot in dots] == [plotting.look(m).marker for m in ("norm_cnn_group", "norm_cnn_batch")]


def test_order_check_crosses_where_the_order_changes():
    figure = plotting.order_check(orders())
    ax = figure.axes[0]
    assert ax.get_title(loc="left") == "Brain MRI, IID\nKendall's tau 0.33"
    assert [list(line.get_ydata()) for line in ax.lines] == [[2, 1], [1, 2], [3, 3]]
    assert texts(ax)[:2] == ["FedAvg  0.700", "0.750  FedAvg"] and no_overlap(figure, ax)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["40 rounds", "120 rounds"]
    tied = plotting.order_check(orders().assign(long=0.7, kendall_tau=np.nan))
    assert "not defined" in tied.axes[0].get_title(loc="left") and no_overlap(tied, tied.axes[0])


def test_the_gallery_has_shares_counts_sizes_and_numbers():
    figure = plotting.partition_gallery(gallery())
    heat = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title(loc="left") for ax in heat] == [f"{name}\nJS 0.25, Gini 0.50" for name in PARTITIONS]
    assert texts(heat[0])[:4] == ["10", "11", "20", "21"]
    np.testing.assert_allclose(heat[0].images[0].get_array()[0], [10 / 21, 11 / 21])
    bars = [ax for ax in figure.axes if len(ax.patches) == 4]
    assert [patch.get_width() for patch in bars[0].patches] == [21, 41, 61, 81]
    assert len({ax.get_xlim() for ax in bars}) == 1
    plain = plotting.partition_gallery(gallery().drop(columns=["js_distance", "size_gini"]), columns=2)
    assert [ax.get_title(loc="left") for ax in plain.axes if ax.images] == list(PARTITIONS)
    with pytest.raises(ValueError, match="'count' has negative"):
        plotting.partition_gallery(gallery().assign(count=-1))


def test_many_hospitals_have_thin_rows_and_an_empty_one_no_shade():
    rows = [(client, name, 5 * (client > 1)) for client in range(1, 51) for name in "ab"]
    frame = pd.DataFrame(rows, columns=["client", "class_name", "count"]).assign(panel="50 hospitals")
    figure = plotting.partition_gallery(frame)
    heat = next(ax for ax in figure.axes if ax.images)
    assert set(texts(heat)) == {""} and figure.get_size_inches()[1] < 8
    np.testing.assert_array_equal(heat.images[0].get_array()[:2], [[0, 0], [0.5, 0.5]])


def test_nine_methods_stay_apart_in_learning_curves():
    rows = [("IID", m, s, n, 0.5 + 0.01 * n) for m in ALGORITHMS for s in range(2) for n in range(1, 6)]
    frame = pd.DataFrame(rows, columns=["panel", "method", "seed", "round", "value"])
    figure = plotting.learning_curves(frame, y_label="Accuracy")
    drawn = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(drawn) == len(ALGORITHMS) == len(legend_texts(figure))
