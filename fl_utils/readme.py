"""Writes the results into README.md from the published tables, so that no number is typed by hand."""

from pathlib import Path

import pandas as pd

from fl_utils import paths
from fl_utils.config import METHOD_LABELS
from fl_utils.records import load_all

BEGIN, END = "<!-- results: written by `make figures` -->", "<!-- end of results -->"


def results_table() -> str:
    """The README's table of notebooks, its results read from `results/tables`.

    Raises:
      FileNotFoundError: a published table is missing.
    """
    tables = paths.results_root("paper") / "tables"
    scores = pd.read_csv(tables / "tab01_metrics.csv").set_index("metric").loc["balanced_accuracy"]
    claims = pd.read_csv(tables / "tab02_claims.csv").query("label == 'Federated, 4 hospitals'")
    first = "; ".join(f"{name.replace(' ', ', ')}: {value}" for name, value in scores.items())
    second = "; ".join(
        f"{row.dataset}, {row.claim}: {'yes' if row.holds else '**no**'}, {row.quantity} {row.value}"
        for row in claims.itertuples()
    )
    leaked = pd.read_csv(paths.results_root("paper") / "figures" / "fig00_leakage.csv").query("split == 'random'")
    zeroth = "; ".join(
        f"{row.dataset}: a split at random scores {row.excess:+.3f} [{row.excess_low:+.3f}, {row.excess_high:+.3f}]"
        for row in leaked.itertuples()
    )
    gap = pd.read_csv(paths.results_root("paper") / "figures" / "fig03_gap.csv").query("method == 'fedavg'")
    grid = pd.read_csv(paths.results_root("paper") / "figures" / "fig03_grid.csv")
    compared = grid[grid["p_holm"].notna()]
    third = "; ".join(
        f"{name}: FedAvg recovers {rows['share'].min():.0%} to {rows['share'].max():.0%} of the gap between alone and pooled, by partition"
        for name, rows in gap.groupby("dataset", sort=False)
    )
    third += "; " + ", ".join(
        f"{(compared['verdict'] == word).sum()} of {len(compared)} comparisons significantly {word} than FedAvg"
        for word in ("better", "worse")
    )
    fourth, fifth, sixth, seventh, eighth, ninth = (
        says(paths.results_root("paper")) for says in (_looks, _segments, _protects, _survives, _deploys, _governs)
    )
    hours = training_hours()
    data = "brain MRI (4 classes), chest X-ray (pneumonia)"
    rows = [
        ("Notebook", "Question", "Data", "Time on 2 cores", "Result [95 % interval]; balanced accuracy where nothing else is said"),
        ("---",) * 5,
        ("[00](notebooks/00_data.ipynb)", "What is in the data, and how much of a score is leakage?",
         "all at hand: 8 data sets", f"quick 1 min, paper {hours['00']:.1f} h",
         f"{zeroth} against the leak-free split (over 5 seeds and splits)"),
        ("[01](notebooks/01_centralized_baselines.ipynb)", "How well can one model do when all images are in one place?",
         data, f"quick 2 min, paper {hours['01']:.1f} h", f"{first} (over 5 seeds)"),
        ("[02](notebooks/02_federated_simulation.ipynb)",
         "Does a federation come near the pooled model (within 10 %), and does it beat each hospital alone?",
         data, f"quick 4 min, paper {hours['02']:.1f} h", f"{second} (over test patients)"),
        ("[03](notebooks/03_iid_versus_non_iid.ipynb)",
         "What does uneven data cost a federation, and which algorithm gives it back?",
         data, f"quick 4 min, paper {hours['03']:.1f} h (half with two processes)", third),
        ("[04](notebooks/04_where_the_model_looks.ipynb)", "Where does the model look, and does federation change it?",
         f"{data}; phantoms for what needs masks", f"quick 3 min, paper {hours['04']:.1f} h (half with two processes)", fourth),
        ("[05](notebooks/05_segmentation.ipynb)", "Can five hospitals learn to segment together, and does attention help?",
         "hippocampus (MRI volumes); tumour volume phantoms of four modalities",
         f"quick 6 min, paper {hours['05']:.1f} h (half with two processes)", fifth),
        ("[06](notebooks/06_privacy.ipynb)", "What does privacy cost a federation, and what does it buy?", data,
         f"quick 3 min, paper {hours['06']:.1f} h (half with two processes)", sixth),
        ("[07](notebooks/07_poisoning.ipynb)",
         "What does one bad hospital do to a federation, and which rule at the server survives it?", "brain MRI (4 classes)",
         f"quick 4 min, paper {hours['07']:.1f} h (half with two processes)", seventh),
        ("[08](notebooks/08_real_federation.ipynb)", "Do four hospitals as real processes get what the simulation promised?",
         "brain MRI (4 classes)", f"quick 6 min, paper {hours['08']:.1f} h after 02", eighth),
        ("[09](notebooks/09_hospitals_in_control.ipynb)", "Can hospitals stay in control of what is computed on their patients?",
         "chest X-ray (pneumonia) from three sources", f"quick 15 min, paper {hours['09']:.1f} h after 03", ninth),
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _looks(root: Path) -> str:
    """Notebook 04 in a line: agreement beside repeatability, and the marker."""
    agreement = pd.read_csv(root / "figures" / "fig04_agreement.csv").query("measure == 'rank_correlation' and cam == 'hires_cam'")
    again = pd.read_csv(root / "tables" / "tab04_repeatability.csv").query("measure == 'rank_correlation' and cam == 'hires_cam'")
    parts = []
    for row in agreement.query("first == 'fedavg' and second == 'centralized'").itertuples():
        name = row.panel.rsplit(", ", 1)[0]  # without the kind of map
        twice = again[(again["panel"] == name) & (again["model"] == "fedavg")].iloc[0]
        parts.append(
            f"{name}: HiResCAM maps of FedAvg and centralized agree by {row.mean:.2f} [{row.low:.2f}, {row.high:.2f}], those of "
            f"FedAvg in two seeds by {twice['mean']:.2f} [{twice['low']:.2f}, {twice['high']:.2f}] (rank correlation)"
        )
    rise = pd.read_csv(root / "figures" / "fig04_shortcut.csv").query("quantity == 'rise'")
    for (name, arm), words in {
        (name, arm): words for name in rise["panel"].unique()
        for arm, words in (("local_marked_1", "that hospital's own model"), ("fedavg_marked_1", "FedAvg"))
    }.items():
        row = rise[(rise["panel"] == name) & (rise["arm"] == arm)].iloc[0]
        parts.append(
            f"{name}: one hospital's side marker makes {words} call {row['mean']:+.0%} [{row['low']:+.0%}, {row['high']:+.0%}] "
            "more of the healthy sick"
        )
    return "; ".join(parts)


def _segments(root: Path) -> str:
    """Notebook 05 in a line: Dice by method, and the federation against the pooled model and the hospitals alone."""
    dice = pd.read_csv(root / "figures" / "fig05_dice.csv").query("region == 'headline' and model == 'unet'")
    claims = pd.read_csv(root / "tables" / "tab05_claims.csv")
    said = [f"{METHOD_LABELS[row.method].lower()} {row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in dice.itertuples()]
    parts = [f"{dice['data'].iloc[0]}, Dice of the U-Net: {', '.join(said)} (over patients)"]
    for row in claims[claims["claim"] != "models differ"].itertuples():
        parts.append(
            f"{row.first}, {row.claim}: {'yes' if row.holds else '**not shown**'}, {row.quantity} {row.estimate:.3f} "
            f"[{row.low:.3f}, {row.high:.3f}]"
        )
    differ = claims[claims["claim"] == "models differ"]
    parts.append(f"the networks differ significantly in {differ['holds'].sum()} of {len(differ)} comparisons")
    return "; ".join(parts)


def _protects(root: Path) -> str:
    """Notebook 06 in a line: what leaks without protection, and what privacy for patients costs."""
    accuracy, inversion, membership = (
        pd.read_csv(root / "tables" / f"tab06_{name}.csv") for name in ("accuracy", "inversion", "membership")
    )
    parts = []
    for name, rows in accuracy.groupby("panel", sort=False):
        found = inversion[(inversion["panel"] == name)].set_index("label")
        said = ", ".join(
            f"{label} {found.loc[label, 'mean']:.2f} [{found.loc[label, 'low']:.2f}, {found.loc[label, 'high']:.2f}]"
            for label in ("one gradient, 1 image", "DLG, 1 image, smooth model", "patient-level DP, epsilon 8")
        )
        random = found.loc["one gradient, 1 image", "random_other"]
        parts.append(f"{name}: SSIM of images rebuilt from an update: {said} (a random other image: {random:.2f})")
        told = membership.query("panel == @name and unit == 'patient' and metric == 'auc' and attack == 'LiRA'")
        parts.append("training patients told from others (LiRA, area under the curve, guessing 0.5): " + ", ".join(
            f"{row.label} {row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in told.itertuples()
        ))
        scores = rows.set_index("arm")
        parts.append(", ".join(
            f"{scores.loc[arm, 'label']} {scores.loc[arm, 'mean']:.3f} [{scores.loc[arm, 'low']:.3f}, {scores.loc[arm, 'high']:.3f}]"
            for arm in ("none", "patient_8", "patient_3", "patient_1", "hospital_few", "encrypted", "local") if arm in scores.index
        ))
    return "; ".join(parts)


def _survives(root: Path) -> str:
    """Notebook 07 in a line: its headline."""
    from fl_utils.experiments.poisoning_answer import headline  # takes seconds to import

    return headline(*(pd.read_csv(root / "tables" / f"tab07_{name}.csv") for name in ("accuracy", "backdoor")))


def _deploys(root: Path) -> str:
    """Notebook 08 in a line: the two claims, the curve, the weights, what a round costs."""
    tables = root / "tables"
    claims, curve = pd.read_csv(tables / "tab08_claims.csv"), pd.read_csv(tables / "tab08_curve.csv").iloc[0]
    agreement = pd.read_csv(paths.results_root("phantoms") / "tables" / "tab08_agreement.csv")
    cost = pd.read_csv(tables / "tab08_overhead.csv").set_index("label")
    said = "; ".join(
        f"real processes, {row.claim}: {'yes' if row.holds else '**not shown**'}, {row.quantity} {row.value}" for row in claims.itertuples()
    )
    return (
        f"{said} (over test patients); curve beside the simulation's: difference {curve['mean_difference']:+.4f} in the mean over "
        f"{curve['seeds']:.0f} seeds and {curve['rounds']:.0f} rounds; weights after three rounds of small trainings within "
        f"{agreement['distance'].max():.0e} of TFF and NumPy; a round costs {cost.loc['TLS and keys', 'over_s']:.1f} s over the training, "
        f"{cost.loc['TLS, keys and SecAgg+', 'over_s']:.1f} s with secure sums"
    )


def _governs(root: Path) -> str:
    """Notebook 09 in a line: what was refused, the claims, the model beside the simulation's and with privacy."""
    tables, figures = root / "tables", root / "figures"
    refused, claims = pd.read_csv(figures / "fig09_rules.csv"), pd.read_csv(tables / "tab09_claims.csv")
    means = pd.read_csv(figures / "fig09_headline.csv").set_index("label")
    agreement = pd.read_csv(paths.results_root("phantoms") / "tables" / "tab09_agreement.csv")
    plain = agreement[~agreement["pair"].str.contains("CKKS")]
    said = "; ".join(f"approved plan, {row.claim}: {'yes' if row.holds else '**not shown**'}, {row.quantity} {row.value}" for row in claims.itertuples())
    shown = {label: f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for label, row in means.iterrows()}
    return (
        f"{refused['tried'].nunique()} attempts refused by {refused['rule'].nunique()} rules; {said} (over test patients); approved plan "
        f"{shown['FedAvg, approved plan (NVFlare)']}, simulated {shown['FedAvg, simulated (TFF)']}, with a patient-level budget "
        f"{shown['Private FedAvg, approved plan']} (over seeds); weights after three rounds of small trainings within {plain['distance'].astype(float).max():.0e} "
        "of TFF and NumPy"
    )


def training_hours() -> dict[str, float]:
    """How long the published runs of each notebook took, from their records; tuning is 02's."""
    hours = dict.fromkeys(("00", "01", "02", "03", "04", "05", "06", "07", "08", "09"), 0.0)
    of_experiment = {
        "leakage": "00", "tuning": "02", "heterogeneity": "03", "heterogeneity_tuning": "03", "explain": "04",
        "segmentation": "05", "segmentation_tuning": "05",
        "privacy": "06", "privacy_tuning": "06", "privacy_shadows": "06",
        "poisoning": "07", "poisoning_tuning": "07", "deployment": "08",
        "governance": "09", "governance_simulated": "09", "governance_tuning": "09",
    }
    roots = [paths.runs_root("paper") / experiment for experiment in ("classification", *of_experiment)]
    phantoms = [paths.runs_root("phantoms") / experiment for experiment in ("explain", "segmentation")]
    for root in (*roots, *phantoms):
        experiment = root.name
        for record in load_all(root):
            baseline = record.config["method"] == "centralized" and record.config["split"] == "deduplicated"
            number = of_experiment.get(experiment, "01" if baseline else "02")
            hours[number] += record.environment["duration_s"] / 3600
    return hours


def update_readme(text: str, table: str) -> str:
    """`text` with the part between the marks replaced by `table`.

    Raises:
      ValueError: the marks are not there.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README.md must hold {BEGIN!r} and {END!r} once each.")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def write_readme() -> None:
    """Brings README.md up to date with the published tables."""
    path = paths.project_root() / "README.md"
    path.write_text(update_readme(path.read_text(), results_table()))
