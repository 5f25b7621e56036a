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
# # 01 · How well can one model do when all images are in one place?
#
# Every claim about federated learning is a comparison with this notebook: the same models, the same images, nobody
# apart. The answer stands below as soon as the runs are loaded, computed from their records.
#
# **You will see** what the images look like and which of them are copies; two models trained on the pooled
# images, over several seeds; their scores with intervals over seeds and over patients; where they err and how sure they are.
#
# **Time and memory** on 2 cores: seconds when the records are there; profile `quick` trains on phantoms in about
# 2 minutes, `paper` on real images in about half an hour. Below 2 GB.
#
# **Data** Brain Tumor Classification (MRI), Bhuvaji et al. 2020, MIT; Chest X-Ray Images (Pneumonia), Kermany et al. 2018,
# CC BY 4.0; or phantoms generated here. **Not for clinical use.**

# %%
import pandas as pd
from IPython.display import Markdown, display

from fl_utils import plotting
from fl_utils.data.audit import audit
from fl_utils.data.load import DataError
from fl_utils.experiments import analysis, plans
from fl_utils.experiments.hospitals import share_out
from fl_utils.experiments.run import dataset_of

# %% tags=["parameters"]
PROFILE = "quick"
METRIC = "balanced_accuracy"

# %% [markdown]
# ## The runs
#
# One call loads the records that are there and trains what is missing; it can be stopped and started again.

# %%
SYNTHETIC = PROFILE != "paper"
DATASETS = plans.datasets_of(PROFILE)
configs = [config for name in DATASETS for config in plans.configs_01(PROFILE, name)]
runs = plans.sweep(configs)
print(f"{len(runs)} runs: {', '.join(DATASETS)}; seeds {plans.settings_of(PROFILE).seeds}")

# %% [markdown]
# ## Answer

# %%
table = analysis.summary(runs, METRIC)
for row in table.itertuples():
    display(Markdown(
        f"**{analysis.panel(row.dataset)}, {row.model}**: balanced accuracy **{row.mean:.3f}** [{row.low:.3f}, {row.high:.3f}] over "
        f"{row.seeds} seeds; [{row.patient_low:.3f}, {row.patient_high:.3f}] over {row.patients} test patients or pictures."
    ))

# %% [markdown]
# ## The images
#
# Without the real images on this machine (`FL_UTILS_DATA`), this part says so and the rest still works from the records.
# The images are shown as the models see them: grey, padded to a square, shrunk. Phantoms carry the outline of their lesion.

# %%
data = {}
for config in {config.dataset: config for config in configs}.values():
    try:
        data[config.dataset] = dataset_of(config.dataset, config.image_size_px, config.num_images)
    except DataError as error:
        print(error)

# %%
for name, dataset in data.items():
    figure = plotting.image_gallery(dataset.images, dataset.labels, dataset.class_names, dataset.masks)
    if dataset.synthetic:  # Real images are shown here and stored nowhere else.
        shown = pd.DataFrame({"source": dataset.sources, "label": dataset.labels}).groupby("label").head(6)
        plotting.save_figure(
            figure, f"fig01_gallery_{name}", data=shown, profile=PROFILE, synthetic=SYNTHETIC,
            caption=f"{analysis.panel(name)}: the first images of each class at {dataset.images.shape[1]} pixels.",
        )
    display(figure)

# %% [markdown]
# ## Are there copies, and do they leak?
#
# A copy of a test image among the training images makes a model look better than it is. *Duplicate groups* are files with the same
# bytes; *pictures* are counted by their pixels, because a file that is saved again has other bytes and shows the same.

# %%
audits = {name: audit(dataset) for name, dataset in data.items()}
if audits:
    display(pd.DataFrame({name: report.counts() for name, report in audits.items()}))

# %%
if audits:
    counts = pd.concat([report.table.assign(panel=analysis.panel(name)) for name, report in audits.items()])
    counts = counts.rename(columns={"split": "part", "class": "class_name", "files": "count", "in_other_split": "duplicates"})
    figure = plotting.class_counts(counts[["panel", "part", "class_name", "count", "duplicates"]])
    plotting.save_figure(
        figure, "fig01_class_counts", data=counts, profile=PROFILE, synthetic=SYNTHETIC,
        caption="Images by class in the published parts; hatched: the same picture is in the other part too.",
    )
    display(figure)

# %% [markdown]
# Therefore the suite does not train on the published parts. It keeps **one image of each picture**, pools the
# parts, and cuts train, validation and test anew, with all images of a patient, all near-duplicates and all files of a numbered
# series on one side (notebook 00 shows them and measures what each is worth). The test set is the same in all
# runs. Notebook 02 reports the published parts beside this, with the difference explained.

# %%
sizes = [
    {"dataset": config.dataset, "part": part, "images": sum(map(len, getattr(share_out(data[config.dataset], config), part)))}
    for config in {config.dataset: config for config in configs}.values() if config.dataset in data
    for part in ("train", "validation", "test")
]
if sizes:
    display(pd.DataFrame(sizes).pivot(index="dataset", columns="part", values="images"))

# %% [markdown]
# ## The two models
#
# * **seed_cnn**: Conv32, pool, Conv64, pool, Dense128, softmax. Nearly all its weights are in the dense layer.
# * **residual_gn**: a small residual network with GroupNorm. BatchNorm is left out on purpose: its running statistics are
#   not trained by gradients, and federated averaging would have to average or drop them.
#
# Both are trained by SGD with momentum; the loss weighs the classes so that each counts alike; the learning rate and the
# use of augmentation were chosen on validation data with a seed of their own (`results/runs/tuning`). The round that is judged is
# the one that did best on validation data.

# %%
settings = pd.DataFrame([run.config for run in runs]).drop_duplicates(["dataset", "model"])
shown = ["dataset", "model", "image_size_px", "total_rounds", "client_batch_size", "client_learning_rate", "augment"]
parameters = {run.config["model"]: run.environment["num_parameters"] for run in runs}
display(settings[shown].assign(parameters=settings["model"].map(parameters)).reset_index(drop=True))

# %% [markdown]
# ## Training

# %%
curves = analysis.curves(runs, METRIC).assign(panel=lambda frame: frame["dataset"].map(analysis.panel))
figure = plotting.learning_curves(curves, y_label="Test balanced accuracy", x_label="Pass over the images", by="model",
                                  share_y=False)
plotting.save_figure(
    figure, "fig01_curves", data=curves, profile=PROFILE, synthetic=SYNTHETIC,
    caption="Balanced accuracy on the test set by pass over the pooled images; band: 95 % t-interval over seeds. "
    "The test curve is shown, not used: rounds are selected on validation data.",
)
display(figure)

# %% [markdown]
# ## Scores
#
# All metrics on the test set at the selected round, mean over seeds with the 95 % t-interval.

# %%
metrics = analysis.metric_table(runs)
metrics["value"] = metrics.apply(lambda row: f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", axis=1)
wide = metrics.pivot(index="metric", columns=["dataset", "model"], values="value").fillna("")
wide = wide.loc[sorted(wide.index, key=lambda name: ("/" in name, name))]
wide.columns = [" ".join(column) for column in wide.columns]
plotting.save_table(
    wide.reset_index(), "tab01_metrics", profile=PROFILE, synthetic=SYNTHETIC,
    caption="Both models on the test set: mean over seeds [95 % t-interval over seeds].",
)
display(wide)

# %%
panels = table.assign(panel=table["dataset"].map(analysis.panel), label=table["model"], method=table["model"])
figure = plotting.intervals(panels, x_label="Balanced accuracy on the test set")
plotting.save_figure(
    figure, "fig01_models", data=panels, profile=PROFILE, synthetic=SYNTHETIC,
    caption="Balanced accuracy of both models, mean and 95 % t-interval over seeds.",
)
display(figure)

# %% [markdown]
# ## Where they err

# %%
best = table.sort_values("mean").drop_duplicates("dataset", keep="last")
chosen = [run for row in best.itertuples() for run in analysis.select(runs, dataset=row.dataset, model=row.model)]
confusion = analysis.confusion(chosen)
figure = plotting.confusion_matrices(confusion)
plotting.save_figure(
    figure, "fig01_confusion", data=confusion, profile=PROFILE, synthetic=SYNTHETIC,
    caption="Confusion of the better model of each data set, all seeds together; share of the true class.",
)
display(figure)

# %% [markdown]
# ## How sure are they?
#
# A calibrated model is right in 80 % of the cases in which it says 80 %. Bars below the diagonal are overconfidence.

# %%
calibration = analysis.reliability(runs)
figure = plotting.reliability(calibration)
plotting.save_figure(
    figure, "fig01_reliability", data=calibration, profile=PROFILE, synthetic=SYNTHETIC,
    caption="Confidence against accuracy on the test set, all seeds together.",
)
display(figure)

# %% [markdown]
# ## What could be wrong
#
# * **Brain MRI has no patient numbers.** Near-duplicates and blocks of numbered files stand in for patients; slices of one patient
#   in another plane can still lie on both sides of any split. Scores on new patients would be lower.
# * **Classes come from different sources.** In brain MRI, file size, image size, border and brightness alone reach a balanced accuracy
#   near that of the models (notebook 00); part of what a model learns may be that. Notebook 04 will look.
# * **Small images, few passes.** The images are small and training is short, so that five seeds of everything fit on two cores.
#   Larger images and longer training give higher scores; the comparisons of notebook 02 hold the budget equal.
# * **One test set.** The interval over seeds says nothing about other patients; the one over patients says nothing about another
#   training. Both are given; neither covers another scanner.
#
# ## Takeaways
#
# 1. Audit before you train: pixels, not bytes.
# 2. A score without its two intervals is half a score.
# 3. These are the numbers that a federation must come near: notebook 02.
#
# ## References
#
# Bhuvaji et al. 2020, doi:10.34740/KAGGLE/DSV/1183165 · Kermany et al. 2018, doi:10.1016/j.cell.2018.02.010 · He et al. 2016,
# arXiv:1603.05027 · Wu and He 2018, arXiv:1803.08494 · Guo et al. 2017, arXiv:1706.04599

# %%
pd.Series(runs[0].environment["versions"], name="version").to_frame()
