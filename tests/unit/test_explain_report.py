"""Notebook 04's tables from small made-up explanations, against sums by hand."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fl_utils.experiments import explain_agreement, explain_answer, explain_report, explain_shortcut
from fl_utils.experiments.explain_plan import CAMS, COMPARED_CAMS
from fl_utils.experiments.explaining import Explanation, upsampled
from fl_utils.explain.similarity import similarity
from fl_utils.records import RunRecord
from fl_utils.statistics import holm, seed_interval

EXAMPLES = np.array([3, 5, 8, 13])
LABELS = np.array([0, 0, 1, 1])
COMMON = ("centralized", "fedavg", "shuffled")
CLIENTS = [(model, "all") for model in COMMON[:1]] + [("local", "0"), ("local", "1")] + [(m, "all") for m in COMMON[1:]]


def scores(seed, rng, masks):
    rows = []
    for model, client in CLIENTS:
        probability = rng.random(4)
        for cam in (*CAMS, "random", "centre") if client == "all" else COMPARED_CAMS:
            for place in range(4):
                lesion = masks and LABELS[place] == 1
                row = {"model": model, "client": client, "example": EXAMPLES[place], "label": LABELS[place]}
                right = probability[place] > 0.5
                row |= {"predicted": LABELS[place] if right else 1 - LABELS[place], "probability": probability[place]}
                row |= {"cam": cam, "empty": 0, "deletion": rng.random(), "insertion": rng.random()}
                for metric in ("pointing", "energy", "iou_half", "iou_best"):
                    row[metric] = rng.random() if lesion else np.nan
                rows.append(row | {"chance": 0.1 * place if lesion else np.nan})
    return pd.DataFrame(rows)


def agreement(rng):
    rows = []
    models = [*CLIENTS, ("untrained", "all")]
    for cam, (one, other), label in itertools.product(COMPARED_CAMS, itertools.combinations(models, 2), (0, 1)):
        rows.append((label, rng.random(), rng.random(), 1 + label, *one, *other, cam))
    columns = ["label", "ssim", "rank_correlation", "images", "first", "first_client", "second", "second_client", "cam"]
    return pd.DataFrame(rows, columns=columns)


def sanity(rng, masks):
    rows = []
    for model, layer, cam in itertools.product(("centralized", "fedavg"), ("logits", "conv2", "conv1"), CAMS):
        row = {"ssim": rng.random(), "rank_correlation": rng.random(), "images": 4, "model": model, "layer": layer, "cam": cam}
        rows.append(row | ({"pointing": rng.random(), "energy": rng.random()} if masks else {}))
    return pd.DataFrame(rows)


def shortcut(rng, arms):
    rows = []
    for arm in arms:
        called = rng.random(2)
        rows += [(arm, "0" if "local" in arm else "all", cam, 2, rng.random(), 0.03, *called) for cam in CAMS]
    columns = ["arm", "client", "cam", "images", "energy", "area", "called_sick", "called_sick_marked"]
    return pd.DataFrame(rows, columns=columns)


def explanation(dataset="phantom_chest", seed=0, *, masks=True, marked=True):
    rng = np.random.default_rng([seed, len(dataset)])
    facts = {"profile": "smoke", "class_names": ["normal", "pneumonia"], "synthetic": True, "layer": "relu2"}
    facts |= {"image_size_px": 16, "runs": {arm: f"{dataset}_{arm}_{seed}" for arm in explain_shortcut.ARM_LABELS}}
    keys = itertools.product(("centralized", "local", "fedavg"), COMPARED_CAMS)
    maps = {key: rng.integers(0, 256, (4, 4, 4), np.uint8) for key in keys}
    arms = explain_shortcut.ARM_LABELS if marked else ()
    return Explanation(
        dataset, seed, facts, scores=scores(seed, rng, masks), agreement=agreement(rng), sanity=sanity(rng, masks),
        shortcut=shortcut(rng, arms), examples=EXAMPLES, maps=maps, marked_maps={},
    )


def records(explanations):
    """Records with two clients' predictions: client "0" and "all" are right in three of four, client "1" in none."""
    found = []
    for one in explanations:
        for arm, name in one.facts["runs"].items():
            rows = []
            for client in ("0", "1") if "local" in arm else ("all",):
                p1 = np.array([0.1, 0.8, 0.9, 0.7]) if client != "1" else np.array([0.9, 0.9, 0.1, 0.1])
                rows.append(pd.DataFrame({"client": client, "split": "test", "label": LABELS, "p0": 1 - p1, "p1": p1}))
            found.append(RunRecord({}, pd.DataFrame(), pd.concat(rows), {}, Path(name)))
    return found


@pytest.fixture(scope="module")
def explained():
    return [explanation(seed=seed) for seed in range(3)] + [explanation("chest_xray", s, masks=False) for s in range(3)]


def row(table, **fields):
    for name, value in fields.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_a_score_is_the_mean_over_seeds_of_means_over_images_and_hospitals(explained):
    table = explain_report.score_table(explained)
    of = {one.seed: one.scores for one in explained[:3]}
    means = [
        np.mean([r.energy for r in of[s].itertuples() if r.model == "local" and r.cam == "grad_cam" and r.label == 1])
        for s in range(3)
    ]
    found, wanted = row(table, dataset="phantom_chest", metric="energy", model="local", cam="grad_cam"), seed_interval(means)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    assert found["seeds"] == 3 and found["images"] == 2 and found["chance"] == pytest.approx((0.2 + 0.3) / 2)
    assert found["label"] == "Alone, Grad-CAM"
    assert found["image_low"] <= found["mean"] <= found["image_high"]
    # Two images: half of the draws take one of them twice, so the interval's ends are the images' own means.
    images = pd.concat([s.query("model == 'local' and label == 1 and cam == 'grad_cam'") for s in of.values()]).groupby("example")["energy"].mean()
    assert (found["image_low"], found["image_high"]) == pytest.approx((images.min(), images.max()))


def test_scores_without_masks_have_no_row_and_no_chance(explained):
    table = explain_report.score_table(explained)
    assert set(table.loc[table["dataset"] == "chest_xray", "metric"]) == {"deletion", "insertion"}
    assert table.loc[~table["metric"].isin(["pointing", "energy"]), "chance"].isna().all()
    # 3 common models with 4 cams and 2 baselines, and the hospitals' own with the two that are compared.
    assert (table.groupby(["dataset", "metric"]).size() == 3 * 6 + 2).all()
    again = explain_report.score_table(explained)
    pd.testing.assert_frame_equal(table, again)


def test_scores_by_class(explained):
    table = explain_report.score_table(explained, ["pointing", "deletion"], by_class=True)
    phantom = table[table["dataset"] == "phantom_chest"]
    assert set(phantom.loc[phantom["metric"] == "pointing", "class_name"]) == {"pneumonia"}
    one = row(phantom, metric="deletion", model="fedavg", cam="centre", class_name="normal")
    values = [
        s.scores.query("model == 'fedavg' and cam == 'centre' and label == 0")["deletion"].mean() for s in explained[:3]
    ]
    assert one["mean"] == pytest.approx(np.mean(values))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: [], "no explanation"),
        (lambda x: [x[0], x[0]], "two explanations of seed 0"),
        (lambda x: [x[0], dataclasses.replace(x[1], examples=EXAMPLES + 1)], "other images than seed 0"),
    ],
)
def test_explanations_that_do_not_belong_together_are_refused(explained, change, said):
    for table in (explain_report.score_table, explain_report.comparisons, explain_report.sanity_table,
                  explain_agreement.agreement_matrix, explain_agreement.repeatability):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            table(change(explained))
    with pytest.raises(ValueError, match="metrics has pointless; expected some of pointing"):
        explain_report.score_table(explained, ["pointless"])


def test_comparisons_are_paired_over_seeds_with_holm_over_all(explained):
    table = explain_report.comparisons(explained)
    per_seed = np.array([
        one.scores.query("cam == 'grad_cam'").groupby("model")["insertion"].mean()[["fedavg", "local"]] for one in explained[3:]
    ])
    found = row(table, dataset="chest_xray", metric="insertion", first="fedavg", second="local", second_cam="grad_cam")
    assert found["difference"] == pytest.approx((per_seed[:, 0] - per_seed[:, 1]).mean())
    assert found["p_value"] == pytest.approx(stats.ttest_rel(*per_seed.T).pvalue)
    np.testing.assert_allclose(table["p_holm"], holm(table["p_value"]))
    assert table["significant"].equals(table["p_holm"] < 0.05)
    # With masks 6 pairs each for pointing and energy, 5 for insertion and deletion; without masks the latter only. Two cams.
    assert len(table) == 2 * (2 * 6 + 2 * 5 + 2 * 5)
    # No random map was scored on the hospitals' own models: only the masks can be compared there.
    assert set(table.loc[(table["first"] == "local") & (table["second_cam"] == "random"), "metric"]) == {"pointing", "energy"}
    with pytest.raises(ValueError, match="at least 2"):
        explain_report.comparisons(explained[:1])


def test_a_sure_difference_is_significant(explained):
    def lifted(one):
        table = one.scores.copy()
        good = (table["model"] == "fedavg") & (table["cam"] == "grad_cam")
        table.loc[good, "insertion"] = 10 + 1e-4 * one.seed
        table.loc[(table["model"] == "centralized") & (table["cam"] == "grad_cam"), "insertion"] = 5
        return dataclasses.replace(one, scores=table)

    table = explain_report.comparisons([lifted(one) for one in explained])
    assert row(table, dataset="chest_xray", metric="insertion", first="fedavg", second="centralized", second_cam="grad_cam")["significant"]


def test_sanity_goes_from_the_logits_to_the_first_layer(explained):
    table = explain_report.sanity_table(explained)
    one = table[(table["dataset"] == "phantom_chest") & (table["model"] == "fedavg") & (table["cam"] == "score_cam")]
    ranks = one[one["measure"] == "rank_correlation"]
    assert ranks["layer"].tolist() == ["logits", "conv2", "conv1"] and ranks["depth"].tolist() == [1, 2, 3]
    energy = one[one["measure"] == "energy"]
    assert energy["layer"].tolist() == ["trained", "logits", "conv2", "conv1"]
    trained = [s.scores.query("model == 'fedavg' and cam == 'score_cam'")["energy"].mean() for s in explained[:3]]
    assert energy["mean"].iloc[0] == pytest.approx(np.mean(trained))
    assert set(table.loc[table["dataset"] == "chest_xray", "measure"]) == {"rank_correlation", "ssim"}
    assert "shuffled" not in set(table["model"])


def test_a_seed_without_a_comparable_map_does_not_count(explained):
    blank = explained[0].sanity.assign(ssim=np.nan, rank_correlation=np.nan, images=0)
    table = explain_report.sanity_table([dataclasses.replace(explained[0], sanity=blank), *explained[1:3]])
    assert set(table.loc[table["measure"] == "ssim", "seeds"]) == {2}


def test_agreement_is_symmetric_and_weighs_images(explained):
    table = explain_agreement.agreement_matrix(explained[:3])
    wide = table[(table["measure"] == "ssim") & (table["cam"] == "hires_cam")].pivot(index="first", columns="second", values="mean")
    np.testing.assert_allclose(wide, wide.T)
    assert set(wide) == set(explain_agreement.NAMES)
    assert table["first"].drop_duplicates().tolist() == list(explain_agreement.NAMES)
    # Label 1 has two images, label 0 one.
    by_hand = []
    for one in explained[:3]:
        rows = one.agreement.query("first == 'centralized' and second == 'fedavg' and cam == 'hires_cam'").sort_values("label")
        by_hand.append(np.average(rows["ssim"], weights=[1, 2]))
    assert wide.loc["fedavg", "centralized"] == pytest.approx(np.mean(by_hand))
    # A hospital with itself is a pair of hospitals; other models stand once, so their diagonal is empty.
    assert np.isfinite(wide.loc["alone", "alone"]) and np.isnan(wide.loc["fedavg", "fedavg"])


def test_pairs_that_cannot_be_compared_do_not_count(explained):
    table = explained[0].agreement.copy()
    table.loc[table["label"] == 1, ["ssim", "rank_correlation", "images"]] = [np.nan, np.nan, 0]
    found = explain_agreement.agreement_matrix([dataclasses.replace(explained[0], agreement=table)])
    kept = table.query("first == 'fedavg' and second == 'untrained' and label == 0 and cam == 'grad_cam'")["ssim"].iloc[0]
    assert row(found, measure="ssim", cam="grad_cam", first="untrained", second="fedavg")["mean"] == pytest.approx(kept)


def test_repeatability_is_over_all_pairs_of_seeds_with_the_jackknife(explained):
    table = explain_agreement.repeatability(explained[:3])
    maps = [upsampled(one.maps["fedavg", "hires_cam"], 16) for one in explained[:3]]
    pairs = {(a, b): similarity(maps[a], maps[b])["ssim"].mean() for a, b in itertools.combinations(range(3), 2)}
    found = row(table, model="fedavg", cam="hires_cam", measure="ssim")
    assert found["mean"] == pytest.approx(np.mean(list(pairs.values()))) and found["pairs"] == 3
    # Leaving out one of three seeds leaves one pair.
    pseudo = [3 * found["mean"] - 2 * pairs[pair] for pair in ((1, 2), (0, 2), (0, 1))]
    wanted = seed_interval(pseudo)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    same = [dataclasses.replace(explained[0], seed=seed) for seed in range(3)]
    assert explain_agreement.repeatability(same)["mean"].tolist() == pytest.approx([1.0] * 12)
    assert explain_agreement.repeatability(explained[:2])["low"].isna().all()
    with pytest.raises(ValueError, match="phantom_chest has the seed 0 only"):
        explain_agreement.repeatability(explained[:1])


def test_the_shortcut_by_hand(explained):
    table = explain_shortcut.shortcut_table(explained, records(explained))
    own = [one.shortcut.query("arm == 'fedavg_marked_1' and cam == 'grad_cam'").iloc[0] for one in explained[:3]]
    found = row(table, dataset="phantom_chest", arm="fedavg_marked_1", quantity="rise")
    assert found["mean"] == pytest.approx(np.mean([r["called_sick_marked"] - r["called_sick"] for r in own]))
    energy = row(table, dataset="phantom_chest", arm="fedavg_marked_1", quantity="energy", cam="grad_cam")
    assert energy["mean"] == pytest.approx(np.mean([r["energy"] for r in own])) and energy["chance"] == 0.03
    assert (energy["method"], energy["marked"]) == ("fedavg", 1)
    # The first hospital's model counts, not the mean over hospitals (the second is wrong everywhere).
    assert row(table, dataset="chest_xray", arm="local_marked_1", quantity="accuracy")["mean"] == 0.75
    assert table[table["quantity"] == "balanced_accuracy"]["mean"].tolist() == pytest.approx([0.75] * 16)
    assert set(table["cam"]) == {"", "grad_cam", "hires_cam"}
    assert table["arm"].drop_duplicates().tolist() == list(explain_shortcut.ARM_LABELS)


def test_shortcut_tests_and_what_is_missing(explained):
    table = explain_shortcut.shortcut_tests(explained, records(explained))
    assert len(table) == 2 * (2 * 2 + 3 * 5)
    np.testing.assert_allclose(table["p_holm"], holm(table["p_value"]))
    rows = [one.shortcut.query("cam == 'hires_cam'").set_index("arm")["energy"] for one in explained[:3]]
    found = row(table, dataset="phantom_chest", quantity="energy", first="fedavg_marked_1", second="local_marked_1")
    pair = np.array([r[["fedavg_marked_1", "local_marked_1"]] for r in rows], float)
    assert found["p_value"] == pytest.approx(stats.ttest_rel(*pair.T).pvalue)
    # Both arms are right alike in all seeds: no difference, and p is 1.
    assert (table.loc[table["quantity"] == "balanced_accuracy", "p_value"] == 1).all()
    with pytest.raises(ValueError, match="phantom_chest_local_0 is not among the 0 runs"):
        explain_shortcut.shortcut_table(explained[:1], [])
    with pytest.raises(ValueError, match="None of the explanations"):
        explain_shortcut.shortcut_table([explanation(marked=False)], [])


def test_cases_are_the_surest_and_the_least_certain():
    one = explanation()
    own = one.scores.query("model == 'fedavg' and client == 'all' and cam == 'grad_cam'").index
    table = one.scores.drop(columns="label").assign(label=0)
    table.loc[own, "probability"] = [0.9, 0.45, 0.2, 0.7]
    table.loc[own, "predicted"] = [0, 1, 1, 0]
    cases = explain_report.chosen_cases(dataclasses.replace(one, scores=table))
    assert dict(zip(cases["kind"], cases["index"], strict=True)) == {"surest right": 0, "surest wrong": 2, "least certain": 1}
    assert cases["example"].tolist() == EXAMPLES[[0, 2, 1]].tolist() and cases["right"].tolist() == [True, False, False]
    assert cases["title"].iloc[1] == "normal\nsurest wrong\np(true) 0.20\nsaid: pneumonia"
    table.loc[own, "predicted"] = 0
    right = explain_report.chosen_cases(dataclasses.replace(one, scores=table))
    assert right["kind"].tolist() == ["surest right", "least certain"]
    with pytest.raises(ValueError, match="common model 'local'"):
        explain_report.chosen_cases(one, "local")


def test_the_answer_says_what_the_tables_hold(explained):
    scores_table, compared = explain_report.score_table(explained), explain_report.comparisons(explained)
    agree, again = explain_agreement.agreement_matrix(explained), explain_agreement.repeatability(explained)
    found = explain_shortcut.shortcut_table(explained, records(explained))
    tests = explain_shortcut.shortcut_tests(explained, records(explained))
    text = explain_answer.answer(scores_table, compared, agree, again, found, tests)
    assert len(text) == 6 and len(explain_answer.answer(scores_table, compared, agree, again)) == 4
    one = row(scores_table, dataset="phantom_chest", metric="energy", model="fedavg", cam="grad_cam")
    said = f"FedAvg {one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
    assert said in text[0] and "share of the image 0.250" in text[0] and "Insertion" not in text[0]
    assert "a random map on FedAvg" in text[3] and "Pointing" not in text[3]
    pair = row(agree, dataset="phantom_chest", cam="hires_cam", measure="rank_correlation", first="alone", second="alone")
    assert f"two hospitals alone {pair['mean']:.3f}" in text[1]
    number = int(compared[(compared["dataset"] == "chest_xray")]["significant"].sum())
    assert f"{number} of " in text[3] and "its area 0.030" in text[2]


def test_maps_of_the_chosen_cases(explained):
    one = explained[0]
    cases = explain_report.chosen_cases(one)
    maps = explain_report.maps_of(one, cases)
    assert list(maps) == ["Centralized", "Alone", "FedAvg"]
    wanted = upsampled(one.maps["local", "hires_cam"][cases["index"].to_numpy()], 16) / 255
    np.testing.assert_array_equal(maps["Alone"], wanted)
