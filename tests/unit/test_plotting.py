"""Figures from small made-up tables: what is drawn, what is refused, and how it is saved."""

import errno
import os
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fl_utils import plotting
from fl_utils.experiments.cells import ALGORITHMS
from fl_utils.plotting import save
from fl_utils.statistics import seed_interval
from tests.unit.made_figures import legend_texts, on_its_page

PANELS = ("Brain MRI", "Chest X-ray")
CLASSES = ("glioma", "meningioma", "no_tumor", "pituitary")


def table(columns, rows):
    return pd.DataFrame(list(rows), columns=columns.split())


def curves(panels=PANELS, seeds=3):
    rng = np.random.default_rng(0)
    return table(
        "panel method seed client round value selected_round",
        (
            (panel, method, seed, client, round_num, 0.5 + 0.02 * round_num + rng.normal(0, 0.01), 4 + seed)
            for panel in panels
            for method in ("centralized", "local", "fedavg")
            for seed in range(seeds)
            for client in (range(2) if method == "local" else ["all"])
            for round_num in range(9)
        ),
    )


def comparison():
    rows = [("Centralized", "centralized", 0.8), ("Federated", "fedavg", 0.78), ("Alone", "local", 0.7)]
    return table(
        "panel label method mean low high reference",
        ((panel, label, method, m, m - 0.02, m + 0.02, 0.72) for panel in PANELS for label, method, m in rows),
    )


def gains():
    return table(
        "panel seed hospital alone federated",
        (
            (panel, seed, hospital, 0.7 + 0.01 * seed, 0.75 + 0.01 * hospital)
            for panel in PANELS for seed in range(3) for hospital in range(1, 5)
        ),
    )


def confusion():
    return table(
        "panel true predicted share count",
        (
            (panel, true, predicted, 0.7 if true == predicted else 0.1, 70.4 if true == predicted else 2.4)
            for panel in ("Centralized", "Federated", "Alone") for true in CLASSES for predicted in CLASSES
        ),
    )


def bins():
    return table(
        "panel model confidence accuracy count",
        (
            (panel, model, (b + 0.5) / 15, (b + 0.2) / 15, 10 + b)
            for panel in PANELS for model in ("seed_cnn", "residual_gn") for b in range(4, 15)
        ),
    )


def counts():
    return table(
        "panel part class_name count duplicates",
        (
            (panel, part, name, 100 + 10 * k, 5)
            for panel in PANELS for part in ("train", "validation", "test") for k, name in enumerate(CLASSES)
        ),
    )


def shares():
    rows = ((client, name, 10 * client + k) for client in range(1, 6) for k, name in enumerate(CLASSES))
    return table("client class_name count", rows)


def steps():
    rows = [("1", 30, 0.3, 1.2), ("2", 70, 0.7, 1.4), ("mean", 100, 1.0, 0.9)]
    return table("client num_examples weight update_norm", rows)


def distances():
    rows = (("Brain MRI", 4, 5), ("Brain MRI", 0, 1), ("Brain MRI", 2, 0), ("Chest X-ray", 0, 0), ("Chest X-ray", 2, 7))
    return table("label distance pairs", rows)


def pictures(num=6, size=16):
    images = np.random.default_rng(0).integers(0, 256, (num, size, size, 1), dtype=np.uint8)
    masks = np.zeros((num, size, size), np.uint8)
    masks[:, 4:9, 4:9] = 1
    return images, np.arange(num) % 2, masks


#: Every figure that is drawn from a table: how it is called, and its needed columns.
FIGURES = {
    "learning_curves": (lambda df: plotting.learning_curves(df, y_label="Accuracy"), curves, "round value seed method"),
    "intervals": (
        lambda df: plotting.intervals(df, x_label="Accuracy", reference_label="90 % of centralized"),
        comparison, "panel label method mean low high",
    ),
    "hospital_gain": (plotting.hospital_gain, gains, "seed hospital alone federated"),
    "confusion_matrices": (plotting.confusion_matrices, confusion, "true predicted share count"),
    "reliability": (plotting.reliability, bins, "model confidence accuracy count"),
    "class_counts": (plotting.class_counts, counts, "part class_name count"),
    "partition_heatmap": (plotting.partition_heatmap, shares, "client class_name count"),
    "round_steps": (plotting.round_steps, steps, "client num_examples weight update_norm"),
    "pair_distances": (lambda df: plotting.pair_distances(df, threshold=36), distances, "label distance pairs"),
}
NEEDED = [(name, column) for name, (_, _, columns) in FIGURES.items() for column in columns.split()]


def titles(figure):
    return [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_UTILS_RESULTS", str(tmp_path))
    return tmp_path


def save_args(**changed):
    return {"data": comparison(), "caption": "Who wins.", "profile": "quick", "synthetic": True} | changed


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_fits_its_page_alone_and_in_panels(name):
    draw, make, _ = FIGURES[name]
    frame = make()
    frames = [frame] + ([frame[frame["panel"] == frame["panel"].iloc[0]]] if "panel" in frame else [])
    for one in frames:
        figure = draw(one)
        assert isinstance(figure, Figure)
        assert on_its_page(figure)
        # The title stands in the caption.
        assert figure.get_suptitle() == ""
    if "panel" in frame and name != "confusion_matrices":
        assert titles(draw(frame)) == list(PANELS)


@pytest.mark.parametrize(("name", "column"), NEEDED)
def test_a_missing_column_is_named(name, column):
    draw, make, _ = FIGURES[name]
    with pytest.raises(ValueError, match=f"{name}: column '{column}' is missing"):
        draw(make().drop(columns=column))


@pytest.mark.parametrize("name", FIGURES)
def test_an_empty_table_is_refused_with_its_columns(name):
    draw, make, columns = FIGURES[name]
    with pytest.raises(ValueError, match=f"{name}: the table .*no rows") as error:
        draw(make().iloc[:0])
    assert all(column in str(error.value) for column in columns.split())


@pytest.mark.parametrize(
    ("name", "column"),
    [("learning_curves", "value"), ("intervals", "mean"), ("hospital_gain", "alone"), ("confusion_matrices", "share"),
     ("reliability", "accuracy"), ("class_counts", "count"), ("partition_heatmap", "count"), ("round_steps", "weight"),
     ("pair_distances", "pairs")],
)
def test_values_that_are_no_numbers_are_named(name, column):
    draw, make, _ = FIGURES[name]
    bad = make()
    bad[column] = bad[column].astype(float)
    bad.loc[1, column] = np.inf if name != "round_steps" else np.nan
    with pytest.raises(ValueError, match=f"{name}: column '{column}' .*not finite.* row 1"):
        draw(bad)
    with pytest.raises(ValueError, match=f"{name}: column '{column}' has type .*expected numbers"):
        draw(bad.assign(**{column: "high"}))


@pytest.mark.parametrize(
    "name",
    ["intervals", "hospital_gain", "confusion_matrices", "class_counts", "partition_heatmap", "round_steps",
     "pair_distances"],
)
def test_two_rows_for_one_place_are_refused(name):
    draw, make, _ = FIGURES[name]
    with pytest.raises(ValueError, match=f"{name}: more than one row for "):
        draw(pd.concat([make(), make().iloc[:1]]))


def test_learning_curves_show_mean_interval_and_selected_round():
    frame = curves()
    figure = plotting.learning_curves(frame, y_label="Accuracy")
    assert [ax.get_xlabel() for ax in figure.axes] == ["Communication round"] * 2
    assert figure.axes[0].get_ylabel() == "Accuracy"
    assert legend_texts(figure) == [
        "Centralized (pooled data)", "Each hospital alone", "Federated (FedAvg)", "selected (median)"
    ]
    ax = figure.axes[0]
    lines = [line for line in ax.lines if len(line.get_xdata()) > 1]
    rings = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert len(lines) == len(rings) == len(ax.collections) == 3
    assert len({(line.get_marker(), line.get_color()) for line in lines}) == 3
    assert [ring.get_xdata()[0] for ring in rings] == [5, 5, 5]
    # Hospitals of one seed are averaged before the interval over seeds is taken.
    rows = frame.query("panel == @PANELS[0] and method == 'local' and round == 8")
    expected = seed_interval(rows.groupby("seed")["value"].mean())
    assert lines[1].get_ydata()[8] == pytest.approx(expected.mean)
    band = ax.collections[1].get_paths()[0].vertices
    ends = band[band[:, 0] == 8][:, 1]
    assert (ends.min(), ends.max()) == pytest.approx((expected.low, expected.high))


def test_learning_curves_of_models_without_selection_and_with_one_seed():
    frame = curves(seeds=1).query("method != 'local'").drop(columns="selected_round")
    frame["model"] = frame["method"].map({"centralized": "seed_cnn", "fedavg": "residual_gn"})
    figure = plotting.learning_curves(frame, y_label="Accuracy", by="model", share_y=False)
    assert legend_texts(figure) == ["Three-layer CNN", "Residual network (GroupNorm)"]
    assert [ax.get_ylabel() for ax in figure.axes] == ["Accuracy", "Accuracy"]
    with pytest.raises(ValueError, match="no look for 'fedfoo'; known are centralized, local, fedavg"):
        plotting.learning_curves(curves().assign(method="fedfoo"), y_label="Accuracy")


def test_every_method_keeps_its_look_everywhere():
    blue = plotting.look("fedavg").colour
    ax = plotting.intervals(comparison(), x_label="Accuracy", reference_label="goal").axes[0]
    dots = [line for line in ax.lines if line.get_linestyle() == "None"]
    assert [dot.get_marker() for dot in dots] == [plotting.look(m).marker for m in ("centralized", "fedavg", "local")]
    assert to_hex(dots[1].get_color()).upper() == blue
    # There are more methods than colours: a colour may come again, with another marker and another line.
    looks = list(plotting.LOOKS.values())
    assert len({(look.colour, look.marker) for look in looks}) == len(looks)
    methods = [look for name, look in plotting.LOOKS.items() if name in (*ALGORITHMS, "centralized", "local")]
    assert len(methods) == 11 and len({look.marker for look in methods}) == len(methods)
    assert len({(look.colour, str(look.linestyle)) for look in methods}) == len(methods)


def test_intervals_have_a_row_a_label_and_a_reference_a_panel():
    figure = plotting.intervals(comparison(), x_label="Balanced accuracy", reference_label="90 % of centralized")
    assert figure.get_supxlabel() == "Balanced accuracy"
    assert legend_texts(figure) == ["mean and 95 % interval over seeds", "90 % of centralized"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["Centralized", "Federated", "Alone"]
    for ax in figure.axes:
        assert len(ax.lines) == 1 + 2 * 3
        assert [text.get_text() for text in ax.texts] == ["0.80", "0.78", "0.70"]
    one = comparison().query("panel == 'Brain MRI'").assign(low=np.nan, high=np.nan, reference=[np.nan, 0.72, 0.7])
    figure = plotting.intervals(one, x_label="Accuracy", reference_label="goal")
    assert len(figure.axes[0].lines) == 3 + 2
    assert (figure.get_supxlabel(), figure.axes[0].get_xlabel()) == ("", "Accuracy")
    figure = plotting.intervals(comparison().drop(columns="reference"), x_label="Accuracy")
    assert legend_texts(figure) == ["mean and 95 % interval over seeds"]


def test_intervals_refuse_what_would_mislead():
    with pytest.raises(ValueError, match="reference_label does not say"):
        plotting.intervals(comparison(), x_label="Accuracy")
    with pytest.raises(ValueError, match="low <= mean <= high"):
        plotting.intervals(comparison().assign(high=0.1), x_label="Accuracy", reference_label="goal")


def test_hospital_gain_counts_who_gains():
    figure = plotting.hospital_gain(gains(), metric_label="Accuracy")
    assert legend_texts(figure) == [*(f"Hospital {h}" for h in range(1, 5)), "no difference"]
    ax = figure.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Accuracy, hospital alone", "Accuracy, federated")
    assert ax.get_title(loc="right") == "better in 12 of 12, mean +0.065"
    assert ax.get_xlim() == ax.get_ylim() and len(ax.lines) == 1 + 4


def test_confusion_matrices_write_share_and_count_into_each_cell():
    figure = plotting.confusion_matrices(confusion())
    maps = [ax for ax in figure.axes if ax.images]
    assert len(maps) == 3 and [len(ax.texts) for ax in maps] == [16] * 3
    assert [maps[0].texts[k].get_text() for k in (0, 1)] == ["70%\n70", "10%\n2.4"]
    assert [tick.get_text() for tick in maps[0].get_xticklabels()] == [name.replace("_", " ") for name in CLASSES]
    assert "Share of the true class" in figure.axes[-1].get_ylabel()
    # Two a row: the last place of the grid stays empty.
    assert len([ax for ax in plotting.confusion_matrices(confusion(), columns=2).axes if ax.images]) == 3
    with pytest.raises(ValueError, match="'predicted' has .*'other'"):
        plotting.confusion_matrices(confusion().replace({"predicted": {"glioma": "other"}}))
    with pytest.raises(ValueError, match="'share' has values outside"):
        plotting.confusion_matrices(confusion().assign(share=70.0))


def test_reliability_has_a_diagonal_and_a_histogram_of_shares():
    figure = plotting.reliability(bins())
    assert legend_texts(figure) == ["Three-layer CNN", "Residual network (GroupNorm)", "perfectly calibrated"]
    upper, lower = figure.axes[0], figure.axes[2]
    assert len(upper.lines) == 3 and len(lower.patches) == 2
    assert lower.get_xlabel().startswith("Confidence") and upper.get_ylabel() == "Accuracy"
    assert lower.patches[0].get_xy()[:, 1].max() == pytest.approx(24 / sum(range(14, 25)))
    with pytest.raises(ValueError, match="'accuracy' has values outside"):
        plotting.reliability(bins().assign(accuracy=1.5))


def test_class_counts_draw_copies_at_the_foot_of_the_bars():
    figure = plotting.class_counts(counts())
    assert legend_texts(figure) == ["train", "validation", "test", "of these, with a copy in another part"]
    assert len(figure.axes[0].patches) == 2 * 3 * 4
    without = plotting.class_counts(counts().drop(columns=["duplicates", "panel"]).drop_duplicates())
    assert len(without.axes[0].patches) == 3 * 4
    with pytest.raises(ValueError, match="'duplicates' is larger than 'count'"):
        plotting.class_counts(counts().assign(duplicates=1000))
    with pytest.raises(ValueError, match="'count' has negative"):
        plotting.class_counts(counts().assign(count=-1))


def test_partition_heatmap_has_a_cell_a_pair_and_a_bar_a_hospital():
    figure = plotting.partition_heatmap(shares().query("not (client == 2 and class_name == 'glioma')"))
    left, right = figure.axes[:2]
    assert len(left.texts) == 20 and left.texts[4].get_text() == "0"
    assert (left.get_xlabel(), left.get_ylabel(), right.get_xlabel()) == ("Class", "Hospital", "Images in all")
    assert [bar.get_width() for bar in right.patches] == [46, 66, 126, 166, 206]


def test_round_steps_show_weights_and_the_mean():
    left, right = plotting.round_steps(steps()).axes
    assert [text.get_text() for text in left.texts] == ["30% (30 images)", "70% (70 images)"]
    assert [bar.get_width() for bar in right.patches] == [1.2, 1.4, 0.9]
    with pytest.raises(ValueError, match="no row 'mean'"):
        plotting.round_steps(steps().iloc[:2])
    with pytest.raises(ValueError, match="'weight' sums to 0.8"):
        plotting.round_steps(steps().assign(weight=0.4))


def test_pair_distances_add_up_to_the_distance_and_show_the_threshold():
    figure = plotting.pair_distances(distances(), threshold=3)
    assert legend_texts(figure) == [*PANELS, "threshold, 3 bits"]
    (ax,) = figure.axes
    *lines, limit = ax.lines
    # By distance, whatever the order of the rows, and each data set for itself.
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in lines] == [
        ([0, 2, 4], [1, 1, 6]), ([0, 2], [0, 7]),
    ]  # fmt: skip
    assert limit.get_xdata() == [3, 3] and limit.get_linestyle() != lines[0].get_linestyle()
    assert len({(line.get_marker(), line.get_color()) for line in lines}) == 2
    # No pair at all is drawn at 0, which a plain logarithm would leave out.
    assert ax.get_yscale() == "symlog" and ax.get_ylim()[0] == 0
    assert ax.get_ylabel() == "Pairs at most so far apart" and "bits of 256" in ax.get_xlabel()
    assert all(float(tick).is_integer() for tick in ax.get_xticks())


def test_pair_gallery_draws_the_pictures_of_a_pair_side_by_side():
    images, _, _ = pictures(10)
    names = [f"{k} bits: neighbouring slices of one head" for k in range(5)]
    figure = plotting.pair_gallery(images[:5], images[5:], names)
    assert len(figure.axes) == 5 and [len(ax.images) for ax in figure.axes] == [1] * 5
    assert len({ax.get_position().y0 for ax in figure.axes}) == 2  # 4 in the first row, 1 in the second
    drawn = np.asarray(figure.axes[3].images[0].get_array())
    np.testing.assert_array_equal(drawn[:, :16], images[3, ..., 0])
    np.testing.assert_array_equal(drawn[:, -16:], images[8, ..., 0])
    assert drawn.shape == (16, 33) and (drawn[:, 16] == 255).all()
    assert {ax.images[0].get_clim() for ax in figure.axes} == {(0, 255)}
    assert [ax.get_xlabel().replace("\n", " ") for ax in figure.axes] == names
    assert on_its_page(figure)
    assert on_its_page(plotting.pair_gallery(images[:1], images[1:2], names[:1]))
    assert len(plotting.pair_gallery(images[:2], images[2:4], names[:2], columns=0).axes) == 2


@pytest.mark.parametrize(
    ("first", "second", "num_titles"),
    [
        (np.s_[:3], np.s_[:2], 3),
        (np.s_[:3], np.s_[:3], 2),
        (np.s_[:0], np.s_[:0], 0),
        (np.s_[:3, :8], np.s_[:3], 3),
        (np.s_[:3, ..., 0], np.s_[:3, ..., 0], 3),
    ],
)
def test_pair_gallery_refuses_pairs_that_do_not_fit(first, second, num_titles):
    images, _, _ = pictures()
    with pytest.raises(ValueError, match=r"pair_gallery: first is .*expected twice uint8 \[N, H, W, 1\], N >= 1"):
        plotting.pair_gallery(images[first], images[second], ["same picture"] * num_titles)


def test_pair_gallery_refuses_what_would_be_drawn_black_or_in_part():
    images, _, _ = pictures()
    for bad in (images / 255, images.repeat(3, axis=3)):
        with pytest.raises(ValueError, match="pair_gallery: first is"):
            plotting.pair_gallery(bad, bad, ["same picture"] * 6)
    with pytest.raises(ValueError, match="second float64"):
        plotting.pair_gallery(images, images.astype(float), ["same picture"] * 6)


def test_the_legend_says_what_the_outline_is():
    images, labels, masks = pictures()
    said = "Outline of the hippocampus"
    figure = plotting.image_gallery(images, labels, ["a", "b"], masks, per_class=2, outline=said)
    assert legend_texts(figure) == [said]
    assert on_its_page(figure)
    # An image without a lesion has no outline, and without masks there is nothing to explain.
    masks[0] = 0
    figure = plotting.image_gallery(images, labels, ["a", "b"], masks, per_class=2)
    assert [len(ax.collections) for ax in figure.axes] == [0, 1, 1, 1]
    assert plotting.image_gallery(images, labels, ["a", "b"], outline=said).legends == []


def test_image_gallery_outlines_lesions_and_leaves_places_empty():
    images, labels, masks = pictures()
    figure = plotting.image_gallery(images, labels, ["no_tumor", "glioma"], masks, per_class=4)
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 0] * 2
    assert sum(len(ax.collections) for ax in figure.axes) == 6
    assert {ax.images[0].get_clim() for ax in figure.axes if ax.images} == {(0, 255)}
    assert figure.axes[0].get_ylabel() == "no tumor" and legend_texts(figure) == ["Outline of the lesion"]
    assert "0 (black) to 255 (white)" in figure.get_supxlabel()
    assert on_its_page(figure)
    assert plotting.image_gallery(images, labels, ["a", "b"]).legends == []


def test_case_gallery_frames_right_and_wrong_differently():
    images, _, _ = pictures()
    names = ["meningioma tumor, said: pituitary tumor, 0.91"] * 6
    figure = plotting.case_gallery(images, names, [True, False] * 3, columns=4)
    frames = [ax.patches[0] for ax in figure.axes]
    assert len(frames) == 6 and frames[0].get_linestyle() != frames[1].get_linestyle()
    assert figure.axes[0].get_xlabel().count("\n") >= 1 and legend_texts(figure) == ["right", "wrong"]
    assert on_its_page(figure)
    assert legend_texts(plotting.case_gallery(images, names, [False] * 6)) == ["wrong"]


def test_galleries_refuse_images_that_do_not_fit():
    images, labels, masks = pictures()
    for bad in (images[..., 0], images.astype(float), images[:0]):
        with pytest.raises(ValueError, match=r"image_gallery: images is .*expected uint8 \[N, H, W, 1\]"):
            plotting.image_gallery(bad, labels[: len(bad)], ["a", "b"])
    with pytest.raises(ValueError, match="labels has 2 entries for 6 images"):
        plotting.image_gallery(images, labels[:2], ["a", "b"])
    with pytest.raises(ValueError, match="labels from 0 to 1 for 1 class names"):
        plotting.image_gallery(images, labels, ["a"])
    with pytest.raises(ValueError, match="masks is"):
        plotting.image_gallery(images, labels, ["a", "b"], masks[:, :4])
    with pytest.raises(ValueError, match="per_class is 0"):
        plotting.image_gallery(images, labels, ["a", "b"], per_class=0)
    with pytest.raises(ValueError, match="case_gallery: borders has 1 entries"):
        plotting.case_gallery(images, ["a"] * 6, [True])


def draw_intervals():
    return plotting.intervals(comparison(), x_label="Accuracy", reference_label="goal")


def test_saving_twice_gives_the_same_bytes(results):
    def read():
        return {path.name: path.read_bytes() for path in sorted((results / "quick" / "figures").iterdir())}

    figure = draw_intervals()
    path = plotting.save_figure(figure, "fig02_headline", **save_args())
    assert path == results / "quick" / "figures" / "fig02_headline.png"
    first = read()
    assert list(first) == [f"fig02_headline.{kind}" for kind in ("csv", "md", "png", "svg")]
    # Not even after the notebook has shown it.
    assert figure._repr_png_().startswith(b"\x89PNG")
    plotting.save_figure(figure, "fig02_headline", **save_args())
    assert read() == first
    # A user's own settings do not reach the file.
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": None, "font.family": "serif"}):
        plotting.save_figure(draw_intervals(), "fig02_headline", **save_args())
    assert read() == first
    assert b"<dc:date>" not in first["fig02_headline.svg"] and b"Software" not in first["fig02_headline.png"]


@pytest.mark.parametrize("draw", [draw_intervals, lambda: plotting.hospital_gain(gains())])
def test_synthetic_figures_say_so(results, draw):
    figure = draw()
    height = figure.get_figheight()
    for _ in range(2):
        plotting.save_figure(figure, "fig", **save_args())
        assert figure.get_supxlabel().count("synthetic phantoms") == 1
    assert height < figure.get_figheight() < height + 0.3
    assert on_its_page(figure)
    assert "synthetic phantoms" in (results / "quick/figures/fig.md").read_text()
    real = draw()
    plotting.save_figure(real, "fig", **save_args(profile="paper", synthetic=False))
    assert (results / "figures/fig.md").read_text() == "Who wins.\n"
    assert "synthetic" not in real.get_supxlabel()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"profile": "paper"}, "profile 'paper' holds results on real data only"),
        ({"name": "../fig"}, "is no name"),
        ({"data": comparison().iloc[:0]}, "no rows"),
        ({"caption": " "}, "caption is empty"),
    ],
)
def test_saving_refuses_what_does_not_belong_there(results, changed, message):
    arguments = save_args(**changed)
    name, frame = arguments.pop("name", "fig"), arguments.pop("data")
    with pytest.raises(ValueError, match=message):
        plotting.save_figure(draw_intervals(), name, data=frame, **arguments)
    with pytest.raises(ValueError, match=message):
        plotting.save_table(frame, name, **arguments)
    assert list(results.rglob("*")) == []


def test_a_full_disk_leaves_what_was_there(results, monkeypatch):
    plotting.save_figure(draw_intervals(), "fig", **save_args())
    folder = results / "quick" / "figures"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write, written = Path.write_bytes, []

    def full(path, content):
        written.append(path)
        if len(written) == 3:
            write(path, content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(plotting.FigureError, match="No space left on device.*FL_UTILS_RESULTS"):
        plotting.save_figure(draw_intervals(), "fig", **save_args(caption="Other."))
    assert len(written) == 3
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_written(results):
    (results / "quick").write_text("a file where a folder should be")
    with pytest.raises(plotting.FigureError, match="could not be written to"):
        plotting.save_table(comparison(), "tab", **{k: v for k, v in save_args().items() if k != "data"})


def test_tables_are_written_for_github(results):
    frame = pd.DataFrame({"method": ["a|b", "c"], "accuracy": [0.81234567, np.nan], "seeds": [5, 5]})
    path = plotting.save_table(frame, "tab01", caption="Results.", profile="paper", synthetic=False)
    assert path.read_text() == (
        "Results.\n\n| method | accuracy | seeds |\n| --- | ---: | ---: |\n| a\\|b | 0.812 | 5 |\n| c | – | 5 |\n"
    )
    assert path.with_suffix(".csv").read_text() == "method,accuracy,seeds\na|b,0.812346,5\nc,,5\n"


def test_an_empty_cell_of_a_table_is_a_dash():
    assert save.github_table(pd.DataFrame({"a": [None]})) == "| a |\n| --- |\n| – |\n"
