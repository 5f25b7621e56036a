"""Notebook 07: the answer in sentences made of its tables' numbers; what is claimed follows from their verdicts."""

from collections.abc import Iterable, Iterator

import pandas as pd

from fl_utils.config import AGGREGATOR_LABELS, ATTACK_LABELS
from fl_utils.experiments.analysis import SIGNIFICANCE, panel, with_interval
from fl_utils.experiments.poisoning_report import RUINED, SURVIVES

_DETECTORS = {"pca": "two principal components", "cosine": "cosine distance"}


def answer(
    accuracy: pd.DataFrame, cost: pd.DataFrame, backdoor: pd.DataFrame, source: pd.DataFrame, detection: pd.DataFrame,
    unusual: pd.DataFrame,
) -> list[str]:
    """The answer, a paragraph of Markdown a data set.

    Args:
      accuracy, cost, backdoor, source, detection, unusual: of `poisoning_report`: `accuracy_table`, `clean_cost`,
        `backdoor_table`, `source_recall_table`, `detection_table`, `unusual_correlation`. Of what is
        empty nothing is said.
    """
    paragraphs = []
    for dataset, table in accuracy.groupby("dataset", sort=False):
        of_data = [part[part["dataset"] == dataset] for part in (cost, backdoor, source, detection, unusual)]
        fraction = main_fraction(table)
        said = [
            *_one_bad(table), *_the_mean(table), *_rules(table), *_changing(table), *_costs(of_data[0]),
            *_backdoors(of_data[1], fraction), *_sources(of_data[2], fraction), *_looks(of_data[3], fraction),
            *_unusual(of_data[4]),
        ]
        paragraphs.append(f"**{panel(dataset)}**\n\n" + "\n".join(f"* {sentence}" for sentence in said))
    return paragraphs


def headline(accuracy: pd.DataFrame, backdoor: pd.DataFrame) -> str:
    """The answer in a paragraph: the worst that the mean meets, the rule that survives most, and where that one fails.

    Args:
      accuracy, backdoor: of `poisoning_report`, of one data set.
    """
    fraction, clean = main_fraction(accuracy), accuracy[accuracy["attack"] == "clean"]
    iid = _fixed(accuracy).query("panel == 'IID' and fraction == @fraction")
    if iid.empty:
        return "No attack was run."
    base = clean.query("panel == 'IID' and aggregator == 'mean'").iloc[0]
    worst = iid[iid["aggregator"] == "mean"].sort_values("mean").iloc[0]
    doors = _fixed(backdoor).query("panel == 'IID' and fraction == @fraction").set_index(["attack", "aggregator"])
    opened = set(doors.index[doors["diff_low"] > 0])  # the accuracy does not show it
    good = [row.verdict == "survives" and (row.attack, row.aggregator) not in opened for row in iid.itertuples()]
    by_rule = iid.assign(good=good).groupby("aggregator", sort=False).agg(good=("good", "sum"), mean=("mean", "mean"))
    best = by_rule.sort_values(["good", "mean"]).index[-1]
    own = iid[iid["aggregator"] == best].sort_values("mean")
    at_worst, weakest = own[own["attack"] == worst["attack"]].iloc[0], own.iloc[0]
    text = (
        f"With {fraction:.0%} bad hospitals, *{ATTACK_LABELS[worst['attack']]}* takes the plain mean from {with_interval(base)} to "
        f"{with_interval(worst)}. "
    )
    if not by_rule.loc[best, "good"]:
        return text + f"No rule is shown to survive any of {iid['attack'].nunique()} attacks on even hospitals."
    text += (
        f"**{AGGREGATOR_LABELS[best]} is shown to survive most, {by_rule.loc[best, 'good']} of the {len(own)} attacks run "
        f"against it** on even hospitals, no backdoor left open ({with_interval(at_worst)} there)"
    )
    if weakest["verdict"] != "survives":
        text += f"; it does worst under *{ATTACK_LABELS[weakest['attack']]}* ({with_interval(weakest)}, {weakest['verdict']})"
    uneven = clean[(clean["panel"] != "IID") & (clean["aggregator"] == best)]
    if len(uneven) and best != "mean":
        text += f", and on uneven hospitals it costs {_difference(uneven.iloc[0])} though nobody attacks"
    said = doors.query("aggregator in ['mean', @best]").reset_index().drop_duplicates("aggregator").set_index("aggregator")
    if len(said) == 2:
        text += (
            f". A backdoor succeeds at {with_interval(said.loc['mean'])} under the mean, whose accuracy does not show it, and at "
            f"{with_interval(said.loc[best])} under {AGGREGATOR_LABELS[best]}"
        )
    return text + "."


def main_fraction(table: pd.DataFrame) -> float:
    """The fraction of bad hospitals with most cells, the smaller one on a tie; 0 where nobody attacks."""
    attacked = _fixed(table)
    return float(attacked["fraction"].mode().min()) if len(attacked) else 0.0


def _one_bad(table: pd.DataFrame) -> Iterator[str]:
    """What as few bad hospitals as there are do to the mean."""
    attacked = _fixed(table)
    rows = attacked[attacked["aggregator"] == "mean"]
    for name, rows in rows[rows["fraction"] == rows["fraction"].min()].groupby("panel", sort=False):
        number, hospitals = rows["attackers"].iloc[0], rows["hospitals"].iloc[0]
        who = "One bad hospital" if number == 1 else f"{number} bad hospitals"
        yield f"**{who} of {hospitals}** and the plain mean, {name}{_clean_mean(table, name)}: {_by_verdict(rows)}."


def _the_mean(table: pd.DataFrame) -> Iterator[str]:
    """Which attacks ruin it, and from which fraction on that was run."""
    attacked = _fixed(table)
    for name, rows in attacked[attacked["aggregator"] == "mean"].groupby("panel", sort=False):
        ruined = rows[rows["verdict"] == "ruined"].sort_values("fraction", kind="stable").drop_duplicates("attack")
        never = [attack for attack in dict.fromkeys(rows["attack"]) if attack not in set(ruined["attack"])]
        if ruined.empty:
            yield f"**No attack that was run is shown to ruin the mean** ({name}; {_attacks(never)})."
            continue
        said = [
            f"{ATTACK_LABELS[row.attack]} (from {row.fraction:.0%} on, {_difference(row)}{_doubts(row)})"
            for row in ruined.itertuples()
        ]
        rest = f" It is not shown to be ruined by {_attacks(never)}." if never else ""
        yield f"**The mean is ruined** ({name}) by {'; '.join(said)}.{rest}"


def _rules(table: pd.DataFrame) -> Iterator[str]:
    """For each panel and fraction with several rules: who survives all, and what nobody survives."""
    for (name, fraction), rows in _fixed(table).groupby(["panel", "fraction"], sort=False):
        if rows["aggregator"].nunique() < 2:
            continue
        attacks, rules = rows["attack"].nunique(), rows["aggregator"].nunique()
        start = f"**{fraction:.0%} bad hospitals, {name}** ({attacks} attacks, {rules} rules)"
        known = rows[rows["verdict"] != ""]
        if known.empty:
            yield f"{start}: too few seeds to say who survives."
            continue
        all_survived = known.groupby("aggregator", sort=False)["verdict"].agg(lambda found: (found == "survives").all())
        number = known["aggregator"].value_counts()
        whole = [f"{AGGREGATOR_LABELS[rule]} ({number[rule]} run)" for rule in all_survived.index[all_survived]]
        survivors = "no rule is shown to survive all that was run against it"
        if whole:
            survivors = f"all that was run against it is survived by {', '.join(whole)}"
        lost = [
            _nobody(attack, found) for attack, found in known.groupby("attack", sort=False)
            if not (found["verdict"] == "survives").any()
        ]
        nobody = f"no rule is shown to survive {'; '.join(lost)}" if lost else "each attack is survived by some rule"
        yield f"{start}: {survivors}; {nobody}."


def _nobody(attack: str, rows: pd.DataFrame) -> str:
    best = rows.loc[rows["mean"].idxmax()]
    ruined = (rows["verdict"] == "ruined").all()
    return (
        f"{ATTACK_LABELS[attack]} ({'all ' if ruined else ''}{len(rows)} rules{' ruined' if ruined else ''}; best "
        f"{AGGREGATOR_LABELS[best['aggregator']]} {with_interval(best)}, {best['verdict']})"
    )


def _changing(table: pd.DataFrame) -> Iterator[str]:
    for name, rows in table[table["schedule"] == "changing"].groupby("panel", sort=False):
        said = [
            f"{ATTACK_LABELS[row.attack]}, {AGGREGATOR_LABELS[row.aggregator]} {_difference(row)} "
            f"({row.verdict or 'not compared'})" for row in rows.itertuples()
        ]
        yield f"**Other bad hospitals in each round** ({name}): {'; '.join(said)}."


def _costs(cost: pd.DataFrame) -> Iterator[str]:
    """Differences to the mean without an attack."""
    for name, rows in cost.groupby("panel", sort=False):
        rules = rows[rows["aggregator"] != "mean"]
        if len(rules):
            said = [
                f"{AGGREGATOR_LABELS[row.aggregator]} {_difference(row)}" + (f" ({row.verdict})" if row.verdict else "")
                for row in rules.itertuples()
            ]
            yield f"**Cost without an attack** against the mean, {name}{_clean_mean(cost, name)}: {'; '.join(said)}."


def _backdoors(backdoor: pd.DataFrame, fraction: float) -> Iterator[str]:
    """Success under each rule, beside the mean of a clean federation."""
    for (name, target, attack), rows, clean in _beside_clean(backdoor, ["panel", "target", "attack"], fraction):
        yield (
            f"**{ATTACK_LABELS[attack]}** ({fraction:.0%} bad hospitals, {name}), share of marked images called "
            f"{target}: {_tested(rows)}{clean}."
        )


def _sources(source: pd.DataFrame, fraction: float) -> Iterator[str]:
    keys = ["panel", "source", "target", "attack"]
    for (name, true, target, _), rows, clean in _beside_clean(source, keys, fraction):
        start = f"**{true} called {target}** ({fraction:.0%} bad hospitals, {name})"
        yield f"{start}, recall of {true}: {_tested(rows)}{clean}."


def _beside_clean(table: pd.DataFrame, keys: list[str], fraction: float) -> Iterator[tuple[tuple, pd.DataFrame, str]]:
    attacked = _fixed(table)
    for key, rows in attacked[attacked["fraction"] == fraction].groupby(keys, sort=False):
        same = table
        for column, value in zip(keys[:-1], key, strict=False):
            same = same[same[column] == value]
        clean = same[(same["attack"] == "clean") & (same["aggregator"] == "mean")]
        said = f"; in a clean federation with the mean {with_interval(clean.iloc[0])}" if len(clean) else ""
        yield key, rows, said


def _tested(rows: pd.DataFrame) -> str:
    """Each rule's value, and whether it differs from the clean mean's after Holm."""
    return "; ".join(
        f"{AGGREGATOR_LABELS[row['aggregator']]} {with_interval(row)}" + (
            "" if pd.isna(row["p_holm"]) else " (not significant)" if row["p_holm"] >= SIGNIFICANCE
            else " (above it)" if row["difference"] > 0 else " (below it)"
        )
        for _, row in rows.iterrows()
    )


def _looks(detection: pd.DataFrame, fraction: float) -> Iterator[str]:
    """What two looks find of the attackers, and how often they accuse the honest where nobody attacks."""
    for (name, detector), rows in detection.groupby(["panel", "detector"], sort=False):
        attacked = _fixed(rows)
        values = attacked[attacked["fraction"] == fraction].pivot(index="attack", columns="metric", values="mean")
        found = values.reindex(columns=["precision", "recall"]).dropna(subset="recall")
        found = found.sort_values("recall", ascending=False, kind="stable")
        said = [
            f"{ATTACK_LABELS[attack]} {row['recall']:.0%} ({_percent(row['precision'])})"
            for attack, row in found.iterrows()
        ]
        parts = [f"attackers found, in brackets how many of the flagged are: {', '.join(said)}"] if said else []
        alarms = rows[(rows["attack"] == "clean") & (rows["metric"] == "false_alarms")]
        parts += [
            f"where nobody attacks, it flags a share of {with_interval(row)} of a round's hospitals"
            for _, row in alarms.iterrows()
        ]
        if parts:
            yield f"**Seen in the updates** by {_DETECTORS[detector]} ({name}): {'; '.join(parts)}."


def _percent(share: float) -> str:
    return "nobody flagged" if pd.isna(share) else f"{share:.0%}"


def _unusual(unusual: pd.DataFrame) -> Iterator[str]:
    """Whether a rule takes from those whose patients are unlike the others'."""
    for name, rows in unusual.groupby("panel", sort=False):
        said = [
            f"{AGGREGATOR_LABELS[row['aggregator']]} {with_interval(row)} (" + (
                "the more unusual, the more it loses" if row["high"] < 0 else "the more unusual, the less it loses"
                if row["low"] > 0 else "no link shown"
            ) + ")"
            for _, row in rows.dropna(subset="mean").iterrows()
        ]
        if said:
            yield (
                f"**Honest but unusual hospitals** ({name}), rank correlation of a hospital's distance to the others "
                f"with its change of accuracy against the mean: {'; '.join(said)}."
            )


def _fixed(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["attack"] != "clean") & (table["schedule"] == "fixed")]


def _clean_mean(table: pd.DataFrame, name: str) -> str:
    rows = table[(table["panel"] == name) & (table["attack"] == "clean") & (table["aggregator"] == "mean")]
    return f" (clean {with_interval(rows.iloc[0])})" if len(rows) else ""


def _by_verdict(rows: pd.DataFrame) -> str:
    """Attacks by what they do, each with its difference."""
    words = {
        "ruined": "ruined by", "harmed": "harmed by", "unclear": "unclear under", "survives": "survives",
        "": "not compared under",
    }  # fmt: skip
    parts = []
    for verdict, word in words.items():
        found = rows[rows["verdict"] == verdict].itertuples()
        said = [f"{ATTACK_LABELS[row.attack]} {_difference(row)}{_doubts(row)}" for row in found]
        parts += [f"{word} {', '.join(said)}"] if said else []
    return "; ".join(parts)


def _difference(row) -> str:
    if pd.isna(row.difference):
        return "without a difference"
    return f"{row.difference:+.3f} [{row.diff_low:+.3f}, {row.diff_high:+.3f}]"


def _doubts(row) -> str:
    """What a reader must know of a verdict."""
    late = ", not significant after Holm" if row.verdict in ("ruined", "harmed") and row.p_holm >= SIGNIFICANCE else ""
    return late + (f", {row.diverged} of {row.seeds} trainings broke down" if row.diverged else "")


def _attacks(names: Iterable[str]) -> str:
    return ", ".join(ATTACK_LABELS[name] for name in names)


def meaning() -> str:
    """What the words of the verdicts mean, in a sentence."""
    return (
        "A rule *survives* an attack if the 95 % interval of its balanced accuracy minus that of the plain mean "
        f"without an attack lies above {SURVIVES:+.2f}; it is *ruined* if the interval lies below {RUINED:+.2f} or a "
        "training broke down; else it is *harmed* (below 0) or *unclear*. What a rule costs without an attack is part "
        "of its loss. A backdoor that succeeds may leave the accuracy as it is."
    )
