# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Does a federation come near the pooled model, and does it beat each hospital alone?
#
# Two claims of a public project on brain MRI with four hospitals: federated training is **within 10 %** of centralized training, and **better
# than each hospital alone**. Here both are measured, with intervals and a paired test, on two data sets. The answer stands below
# as soon as the runs are loaded, computed from their records.
#
# **You will see** one round taken apart, by hand in NumPy and by TensorFlow Federated; who holds which images; learning curves; the
# two claims; what each hospital gains; what the published brain MRI split hides; what is sent.
#
# **Time and memory** on 2 cores: a minute when the records are there; profile `quick` trains on phantoms in about
# 5 minutes, `paper` on real images in about two hours. Below 3 GB.
#
# **Data** Brain Tumor Classification (MRI), Bhuvaji et al. 2020, MIT; Chest X-Ray Images (Pneumonia), Kermany et al. 2018,
# CC BY 4.0; or phantoms generated here. **Not for clinical use.**

# %%
import pandas as pd
from IPython.display import Markdown, display

from fl_utils import plotting
from fl_utils.data.load import DataError, load_dataset
from fl_utils.experiments import analysis, plans
from fl_utils.experiments.run import dataset_of
from fl_utils.experiments.worked_round import worked_round

# %% tags=["parameters"]
PROFILE = "quick"
METRIC = "balanced_accuracy"

# %% [markdown]
# ## The runs
#
# For every seed: the pooled model, each of 4 hospitals alone, and their federation; on phantoms also 3 of 5 hospitals a
# round. One call loads the records that are there and trains what is missing; it can be stopped and started again.

# %%
SYNTHETIC = PROFILE != "paper"
DATASETS = plans.datasets_of(PROFILE)
every = plans.sweep([config for name in DATASETS for config in plans.configs_02(PROFILE, name)])
runs = [run for run in every if run.config["split"] == "deduplicated"]
four = [run for run in runs if run.config["num_clients"] in (1, 4)]
print(f"{len(every)} runs: {', '.join(DATASETS)}; seeds {plans.settings_of(PROFILE).seeds}")

# %% [markdown]
# ## Answer

# %%
claims = analysis.claims(runs, METRIC)
for row in claims[claims["label"] == "Federated, 4 hospitals"].itertuples():
    value = f"{row.quantity} **{row.estimate:.3f}** [{row.low:.3f}, {row.high:.3f}] over test patients"
    verdict = "holds" if row.holds else "does NOT hold"
    display(Markdown(
        f"**{analysis.panel(row.dataset)}, {row.claim}: {verdict}.** {value}; difference {row.difference:+.3f} "
        f"[{row.seed_low:+.3f}, {row.seed_high:+.3f}] over seeds, p = {row.p_holm:.2g} for the claim (paired t, Holm)."
    ))

# %% [markdown]
# ## One round, step by step
#
# 1. The server sends its weights to the hospitals of the cohort.
# 2. Each hospital trains on its own images and sends back only the *change* of the weights.
# 3. The server subtracts the mean of the changes, **weighted by how many images each hospital has**.
#
# Below, four hospitals of uneven size do one round of softmax regression: once written out in NumPy
# (`fl_utils/learning/reference.py`, gradients included), once by TFF. Both must give the same weights.

# %%
probe = plans.base_config(PROFILE, DATASETS[0], method="fedavg")
try:
    images = dataset_of(probe.dataset, probe.image_size_px, probe.num_images)
except DataError:
    images = load_dataset("phantom_brain", image_size_px=48, num_images=420)
sizes = (40, 80, 120, 160) if len(images) >= 400 else (10, 20, 25, 30)
step = worked_round(images, sizes=sizes)
print(f"{images.name}: largest difference between NumPy and TFF {step.max_difference:.1e}, "
      f"largest weight {step.largest_weight:.1e}")

# %%
figure = plotting.round_steps(step.table)
plotting.save_figure(
    figure, "fig02_round", data=step.table, profile="quick" if images.synthetic and not SYNTHETIC else PROFILE,
    synthetic=images.synthetic,
    caption="One round of federated averaging: each hospital's share in the mean (its share of the images), and the length of its update; "
    "the mean is shorter than most, because updates point in different directions.",
)
display(figure)

# %% [markdown]
# ## Who holds what
#
# Images are dealt out at random, by patient and with equal class shares (IID), anew for every seed; train, validation and test alike. Each
# hospital so has a test part of its own, and the union of these parts is the common test set. Uneven hospitals are notebook 03.

# %%
partitions = []
for name in DATASETS:
    config = plans.base_config(PROFILE, name, method="fedavg")
    run = analysis.select(four, dataset=name, method="fedavg", clients_per_round=None)[0]
    counts = run.environment["class_counts"]["train"]
    names = run.environment["class_names"]
    partitions += [(name, f"Hospital {k}", c, n) for k, row in enumerate(counts) for c, n in zip(names, row, strict=True)]
partitions = pd.DataFrame(partitions, columns=["dataset", "client", "class_name", "count"])

# %%
for name, counts in partitions.groupby("dataset", sort=False):
    figure = plotting.partition_heatmap(counts)
    plotting.save_figure(
        figure, f"fig02_partition_{name}", data=counts, profile=PROFILE, synthetic=SYNTHETIC,
        caption=f"{name}: training images by hospital and class, first seed.",
    )
    display(figure)

# %% [markdown]
# ## The protocol
#
# All methods start from the same weights and take **the same number of gradient steps, one after another**: E passes over
# the pooled data; E rounds of C passes for a hospital alone, which has 1/C of the data; E·C rounds of one pass in the federation. Each
# method's learning rate was chosen from the same three on validation data, with a seed of its own; each run's round on validation
# data (a hospital alone: on its own).

# %%
settings = pd.DataFrame([run.config for run in every]).drop_duplicates(["dataset", "split", "method", "num_clients", "clients_per_round"])
shown = ["dataset", "split", "method", "num_clients", "clients_per_round", "total_rounds", "client_epochs_per_round",
         "client_batch_size", "client_learning_rate", "augment", "image_size_px"]
display(settings[shown].sort_values(["dataset", "split", "num_clients"]).reset_index(drop=True))

# %% [markdown]
# ## Rounds

# %%
whole = [run for run in four if run.config["clients_per_round"] is None]
curves = pd.concat([analysis.curves([r for r in whole if r.config["dataset"] == name], METRIC) for name in DATASETS])
curves = curves.assign(panel=curves["dataset"].map(analysis.panel))
figure = plotting.learning_curves(curves, y_label="Test balanced accuracy", by="method", share_y=False)
plotting.save_figure(
    figure, "fig02_curves", data=curves, profile=PROFILE, synthetic=SYNTHETIC,
    caption="Balanced accuracy on the common test set at equal numbers of gradient steps, counted in federated rounds; 4 hospitals; "
    "'alone' is the mean over the hospitals' models; band: 95 % t-interval over seeds.",
)
display(figure)

# %% [markdown]
# ## The two claims
#
# The dotted line is 90 % of the pooled model's score. *Within 10 %* is tested against that line, *better than alone* against zero.
# A claim holds when its bootstrap interval over patients lies beyond that value and the paired t-test over seeds does
# too, at 0.05 after Holm's correction over all claims of the table.

# %%
table = analysis.summary(runs, METRIC)
pooled = table[table["method"] == "centralized"].set_index("dataset")["mean"]
table = table.assign(panel=table["dataset"].map(analysis.panel), reference=0.9 * table["dataset"].map(pooled))
figure = plotting.intervals(table, x_label="Balanced accuracy on the common test set", reference_label="90 % of centralized")
plotting.save_figure(
    figure, "fig02_headline", data=table, profile=PROFILE, synthetic=SYNTHETIC,
    caption="Centralized, federated and alone: balanced accuracy on the same test images, mean and 95 % t-interval over seeds.",
)
display(figure)

# %%
readable = claims.assign(
    value=claims.apply(lambda row: f"{row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", axis=1),
    seeds=claims.apply(lambda row: f"{row['difference']:+.3f} [{row['seed_low']:+.3f}, {row['seed_high']:+.3f}]", axis=1),
)[["dataset", "label", "claim", "quantity", "value", "seeds", "p_value", "p_holm", "holds"]]
plotting.save_table(
    readable, "tab02_claims", profile=PROFILE, synthetic=SYNTHETIC,
    caption="Both claims. value: bootstrap over test patients; seeds: difference and 95 % t-interval over seeds; "
    "p-values: paired t over seeds (within 10 %: against 0.9 of centralized), Holm-corrected over this table.",
)
display(readable)

# %% [markdown]
# ## What does each hospital gain?
#
# One point a hospital and seed: its own model against the shared one, on the same test images.

# %%
gain = analysis.hospital_gain(four, METRIC).assign(panel=lambda frame: frame["dataset"].map(analysis.panel))
figure = plotting.hospital_gain(gain)
plotting.save_figure(
    figure, "fig02_hospital_gain", data=gain, profile=PROFILE, synthetic=SYNTHETIC,
    caption="Balanced accuracy of each hospital's own model and of the federated one, on the common test set.",
)
display(figure)
print(f"better off in the federation: {(gain['federated'] > gain['alone']).sum()} of {len(gain)} hospitals and seeds")

# %% [markdown]
# ## The published brain MRI split
#
# Others report the folders as downloaded. In them, 251 of 394 test images show the same picture as a training image, *and* the test
# images come from other sources. Two effects against each other: copies lift the score, the shift lowers it. Judging the same
# models without the copied test images takes the first away.

# %%
published = [run for run in every if run.config["split"] == "published"]
if published:
    parts = {"As downloaded": analysis.metric_table(published)}
    parts["Copies left out"] = analysis.metric_table(published, without_copies=True)
    parts["Our split"] = analysis.metric_table(
        [run for run in four if run.config["dataset"] == "brain_mri" and run.config["clients_per_round"] is None])
    splits = pd.concat([frame.assign(panel=name) for name, frame in parts.items()])
    splits = splits[splits["metric"] == METRIC]
    figure = plotting.intervals(splits, x_label="Balanced accuracy on three test sets of brain MRI")
    plotting.save_figure(
        figure, "fig02_published", data=splits, profile=PROFILE, synthetic=SYNTHETIC,
        caption="Brain MRI on the published split with and without copies of training images, and on the leak-free split; mean and "
        "95 % t-interval over seeds. Without copies no_tumor is empty in the published test part: the mean is over three classes.",
    )
    display(figure)

# %%
if published:
    rows = pd.concat([frame.assign(test=name) for name, frame in parts.items()])
    rows = rows[rows["metric"].str.contains("sensitivity|^accuracy|balanced") & (rows["method"] == "centralized")]
    rows["value"] = rows.apply(lambda row: f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", axis=1)
    rows = rows[rows["mean"].notna()]  # a class that is absent has no sensitivity
    wide = rows.pivot(index="metric", columns="test", values="value").fillna("–")
    plotting.save_table(
        wide.reset_index(), "tab02_published", profile=PROFILE, synthetic=SYNTHETIC,
        caption="The centralized model on three test sets of brain MRI, by class: mean [95 % t-interval over seeds].",
    )
    display(wide)

# %% [markdown]
# ## All metrics

# %%
metrics = analysis.metric_table(four)
metrics["value"] = metrics.apply(lambda row: f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", axis=1)
wide = metrics.pivot(index=["dataset", "metric"], columns="label", values="value")
plotting.save_table(
    wide.reset_index(), "tab02_metrics", profile=PROFILE, synthetic=SYNTHETIC,
    caption="4 hospitals, common test set: mean over seeds [95 % t-interval over seeds].",
)
display(wide)

# %% [markdown]
# ## What is sent
#
# Weights travel, images do not. That is no privacy guarantee: notebook 06 shows what updates give away.

# %%
sent = pd.DataFrame([
    {"dataset": run.config["dataset"], "arm": analysis.arm_label(run.config), **analysis.communication(run)}
    for run in runs if run.config["method"] == "fedavg"
]).drop_duplicates(["dataset", "arm"])
sent["upload_MB_a_hospital_and_round"] = sent.pop("upload_bytes_a_round") / 1e6
sent["total_GB"] = sent.pop("total_bytes") / 1e9
display(sent.round(2).reset_index(drop=True))

# %% [markdown]
# ## What could be wrong
#
# * **IID hospitals are the easy case.** Real hospitals differ in scanners, patients and size: notebook 03.
# * **Five seeds.** The paired t-test takes the five differences as normal, which five numbers cannot show. The bootstrap over
#   patients does not need that, but knows nothing of other trainings. Claims must pass both.
# * **Equal gradient steps, unequal sums.** At equal steps one after another, the federation computes C times as many gradients as the pooled model,
#   in parallel. At equal sums it would stop after 1/C of its rounds: read the curve there.
# * **Small images, few passes**: see notebook 01. A longer training may narrow or widen the gaps.
# * **Brain MRI has no patient numbers**, so patients may straddle any split, and hospitals too.
#
# ## Takeaways
#
# 1. Compare at the same steps, the same tuning, the same test images; then the two claims can be tested.
# 2. Weighted averaging is a few lines; NumPy and TFF agree to rounding.
# 3. A published split may leak and shift at once; look at both before comparing with papers.
#
# ## References
#
# McMahan et al. 2017, arXiv:1602.05629 · Reddi et al. 2021, arXiv:2003.00295 · Sheller et al. 2020, doi:10.1038/s41598-020-69250-1 · Holm 1979

# %%
pd.Series(every[0].environment["versions"], name="version").to_frame()
