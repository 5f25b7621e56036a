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
# # 03 · What does uneven data cost a federation, and which algorithm gives it back?
#
# Hospitals differ: in what they treat, in size, in their scanners. Nine federated algorithms meet five such partitions of the same images,
# with the same budget of tuning and five seeds each, between two anchors: every hospital alone, and all images in one place.
# Every sentence with a number below is computed from the records in this notebook.
#
# **You will see** who holds what; how the settings were chosen; the grid with its significance; ranks; the share of the gap that is
# recovered; rounds and bytes to a target; hospitals one by one; what fewer hospitals a round, normalisation layers and longer training
# change; what to use when; and at the end sliders to try it yourself.
#
# **Time and memory** on 2 cores: a minute when the records are there; profile `quick` trains on phantoms in about 4 minutes,
# `paper` on real images in about three hours with two processes (`fl-utils sweep --profile paper --only 03 --workers 2`). Below 3 GB a process.
#
# **Data** Brain Tumor Classification (MRI), Bhuvaji et al. 2020, MIT; Chest X-Ray Images (Pneumonia), Kermany et al. 2018,
# CC BY 4.0; or phantoms generated here. **Not for clinical use.**

# %%
import pandas as pd
from IPython.display import Markdown, display

from fl_utils import plotting
from fl_utils.config import METHOD_LABELS
from fl_utils.experiments import analysis, grid, grid_report, heterogeneity, notebooks, plans
from fl_utils.interactive import playground
from fl_utils.learning.algorithms import ALGORITHMS

# %% tags=["parameters"]
PROFILE = "quick"
METRIC = "balanced_accuracy"
TARGET_SHARES = (0.8, 0.95)

# %% [markdown]
# ## The runs
#
# One call loads the records that are there and trains what is missing; it can be stopped and started again. Tables and figures are made of
# whole blocks only: a partition stands in them when all its algorithms have all their seeds.

# %%
SYNTHETIC = PROFILE != "paper"
DATASETS = notebooks.datasets_of("03", PROFILE)
plan = [config for name in DATASETS for config in grid.configs_03(PROFILE, name)]
runs = plans.sweep(plan, experiment=grid.GRID, facts=grid.tuning_facts(), keep_diverged=True)
parts = {}
for run in runs:
    parts.setdefault(grid.part_of(run.config, PROFILE), []).append(run)
main_plan = [config for config in plan if grid.part_of(config.model_dump(), PROFILE) == "grid"]
main = heterogeneity.whole(parts["grid"], main_plan)
methods = [method for method in heterogeneity.ALGORITHMS if any(run.config["method"] == method for run in main)]
print(f"{len(runs)} runs; in the grid {len(main)} of {len(main_plan)}; seeds {grid.GRIDS[PROFILE].seeds}")

# %% [markdown]
# ## Answer

# %%
table = heterogeneity.grid(main, METRIC, methods)
gap = heterogeneity.gap_recovered(main, METRIC, methods)
advice = heterogeneity.advice(main, METRIC, methods)
ranks = heterogeneity.ranks(main, METRIC, methods)
for sentence in grid_report.answer(table, gap, ranks):
    display(Markdown(sentence))

# %% [markdown]
# ## Who holds what
#
# **IID** deals every class out evenly. **Dirichlet** gives each class to the hospitals in proportions drawn from Dir(alpha). **Half of the
# classes**: each hospital sees no more. **Unequal sizes**: the same mix, sizes drawn from Dir(0.5). **A scanner a hospital**: even shares, but tone,
# sharpness and noise are each hospital's own. Patients and copies stay whole. JS is the mean Jensen-Shannon distance of two hospitals' class mixes
# (0 alike, 1 nothing in common), Gini that of their sizes. First seed; every seed draws its own.

# %%
for name in DATASETS:
    first = [run for run in main if run.config["dataset"] == name and run.config["method"] == "fedavg" and run.config["seed"] == 0]
    counts = grid_report.recorded_counts(first)
    counts = counts.merge(heterogeneity.heterogeneity_numbers(counts), on="panel")
    figure = plotting.partition_gallery(counts)
    plotting.save_figure(
        figure, f"fig03_partitions_{name}", data=counts, profile=PROFILE, synthetic=SYNTHETIC,
        caption=f"{analysis.panel(name)}: training images by hospital and class on every partition, first seed.",
    )
    display(figure)

# %% [markdown]
# ## The algorithms, and how their settings were chosen
#
# Clients take plain SGD steps, one pass a round, and count by their images. Every method had **six trials** on one draw of the Dirichlet
# partition with a seed of its own, judged on validation data; the winner is used on all partitions. Server rates that are not named are 1.

# %%
display(pd.DataFrame(
    [{"algorithm": ALGORITHMS[m].label, "source": ALGORITHMS[m].source} for m in (*methods, "finetuned", "local_norm")]
))
settings = grid_report.chosen_settings(main)
plotting.save_table(
    settings, "tab03_settings", profile=PROFILE, synthetic=SYNTHETIC,
    caption="The settings of every method; score: balanced accuracy on validation data in the tuning run, lowest and best of the six trials.",
)
display(settings)

# %% [markdown]
# ## Learning curves
#
# Validation data of all hospitals, mean over seeds.

# %%
for name in DATASETS:
    curves = heterogeneity.curves([run for run in main if run.config["dataset"] == name], METRIC, methods=methods)
    figure = plotting.learning_curves(curves, y_label="Balanced accuracy (validation)", columns=3, bands=False)
    plotting.save_figure(
        figure, f"fig03_curves_{name}", data=curves, profile=PROFILE, synthetic=SYNTHETIC,
        caption=f"{analysis.panel(name)}: the common model over the rounds, mean over seeds; the spread over seeds is in the grid.",
    )
    display(figure)

# %% [markdown]
# ## The grid
#
# Each cell: balanced accuracy on the common test set, and the difference to FedAvg on the same partition. Bold with a star: significant (paired t over
# seeds, Holm over the data set's whole table).

# %%
figure = plotting.grid_heatmap(table)
plotting.save_figure(
    figure, "fig03_grid", data=table, profile=PROFILE, synthetic=SYNTHETIC,
    caption="Algorithms on partitions: balanced accuracy on the common test set, mean over seeds, and the difference to FedAvg.",
)
display(figure)
anchors = grid_report.anchor_table(main, METRIC)
plotting.save_table(
    anchors, "tab03_anchors", profile=PROFILE, synthetic=SYNTHETIC,
    caption="What the federations stand between, mean [95 % t-interval over seeds]. Equal passes: every image is seen as often as in the "
    "federation, so the pooled model takes as many steps as all hospitals together; equal steps: its curve read at as many steps as one hospital takes.",
)
display(anchors)

# %%
figure = plotting.rank_diagram(ranks)
plotting.save_figure(
    figure, "fig03_ranks", data=ranks, profile=PROFILE, synthetic=SYNTHETIC,
    caption=f"Average ranks over {ranks['blocks'].iloc[0]} blocks (data set and partition, means over seeds); Friedman p = "
    f"{ranks['friedman_p'].iloc[0]:.2g}; bars join methods that Nemenyi's critical difference does not tell apart.",
)
display(figure)

# %% [markdown]
# ## The share of the gap that is recovered
#
# 0 is a hospital alone (mean over hospitals), 1 the pooled model at equal passes. Judged on the common test set, so a hospital that never saw a class pays for it.

# %%
figure = plotting.gap_bars(gap)
plotting.save_figure(
    figure, "fig03_gap", data=gap, profile=PROFILE, synthetic=SYNTHETIC,
    caption="(federated - alone) / (centralized - alone) with Fieller's 95 % interval over seeds.",
)
display(figure)

# %% [markdown]
# ## What it costs to get there
#
# Rounds until the mean validation curve reaches a share of the pooled model's validation score: an easy target and a hard one.
# SCAFFOLD and Mime-lite send twice the bytes a round.

# %%
for share in TARGET_SHARES:
    cost = heterogeneity.cost_to_target(main, share, METRIC, methods)
    figure = plotting.cost_to_target(cost)
    plotting.save_figure(
        figure, f"fig03_cost_{100 * share:.0f}", data=cost, profile=PROFILE, synthetic=SYNTHETIC,
        caption=f"Rounds to {share:.0%} of the centralized validation score; bytes are in the figure's data.",
    )
    display(figure)
    reached = cost[cost["rounds"].notna()].assign(MB=lambda table: table["total_bytes"] / 1e6)
    cheapest = reached.groupby(["panel", "partition"], sort=False)["MB"].idxmin()
    display(Markdown(f"Cheapest way to {share:.0%}, where any method gets there:"))
    display(reached.loc[cheapest, ["panel", "partition", "method", "rounds", "MB"]].round(1))

# %% [markdown]
# ## Hospitals one by one
#
# A mean can hide a hospital that the common model fails. Each dot is a hospital's score on its own test images (10 or more; balanced over the classes
# that it has).

# %%
shown = [run for run in main if run.config["method"] in ("local", *methods[:1], "scaffold", "fedadam")]
scores = heterogeneity.hospital_scores(shown, METRIC)
figure = plotting.hospital_spread(scores)
plotting.save_figure(
    figure, "fig03_hospitals", data=scores, profile=PROFILE, synthetic=SYNTHETIC,
    caption="Each hospital's balanced accuracy on its own test images, all seeds; crosses: the worst hospital of a seed.",
)
display(figure)
fairness = heterogeneity.fairness(main, METRIC)
fairness = fairness[fairness["seeds"] > 0]
_ = plotting.save_table(
    fairness[["panel", "partition", "method", "mean", "worst", "worst_low", "worst_high", "std", "judged", "left_out"]], "tab03_fairness",
    profile=PROFILE, synthetic=SYNTHETIC, caption="Hospitals' own test images: mean, worst hospital with 95 % t-interval over seeds, spread.",
)

# %% [markdown]
# ## Personal models
#
# FedAvg, then two passes of each hospital on its own images. On its own test images such a model profits from knowing which classes the hospital has:
# where a hospital has one class only, always answering it is perfect and worthless. So read this beside the class mix above.

# %%
if "personal" in parts:
    personal = [run for run in main if run.config["method"] in ("local", "fedavg", "centralized")] + parts["personal"]
    gain = heterogeneity.personal_gain(personal, METRIC)
    mean = gain.groupby(["panel", "partition", "seed"], sort=False)[["local", "fedavg", "finetuned"]].mean()
    summary = mean.groupby(["panel", "partition"], sort=False).mean().reset_index()
    summary["hospitals"] = gain.groupby(["panel", "partition"], sort=False).size().to_numpy()
    plotting.save_table(
        summary, "tab03_personal", profile=PROFILE, synthetic=SYNTHETIC,
        caption="Balanced accuracy on a hospital's own test images, mean over hospitals and seeds: own model, FedAvg, FedAvg fine-tuned.",
    )
    display(summary.round(3))

# %% [markdown]
# ## How uneven, how many, which layers
#
# FedAvg over the Dirichlet parameter; 50 hospitals of which 10 take part in a round; three real sources of chest X-rays (children in Guangzhou, adults in
# Bethesda standing and at the bedside); and normalisation layers: BatchNorm's running mean and variance are no gradient's work, and a federation must do
# something with them: average them, drop them as TFF does, or leave them at home (then each test image is judged by the model of its hospital).

# %%
if "alphas" in parts:
    swept = [run for run in main if run.config["partition"] in ("iid", "dirichlet")] + parts["alphas"]
    alphas = grid_report.method_intervals([run for run in swept if run.config["method"] == "fedavg"], METRIC)
    figure = plotting.intervals(alphas.assign(panel=alphas["dataset_label"], label=alphas["partition"]), x_label="FedAvg: balanced accuracy on the common test set")
    plotting.save_figure(
        figure, "fig03_alphas", data=alphas, profile=PROFILE, synthetic=SYNTHETIC,
        caption="FedAvg over the Dirichlet parameter: mean and 95 % t-interval over seeds.",
    )
    display(figure)

# %%
captions = {"many": "Chest X-ray, 50 hospitals, 10 of them in each of 60 rounds", "natural": "Three real sources of chest X-rays as hospitals"}
for part, caption in captions.items():
    if part in parts:
        shown = grid_report.method_intervals(parts[part], METRIC)
        panels = shown["dataset_label"] + (", " + shown["partition"] if part == "many" else "")
        figure = plotting.intervals(shown.assign(panel=panels), x_label="Balanced accuracy on the common test set")
        plotting.save_figure(
            figure, f"fig03_{part}", data=shown, profile=PROFILE, synthetic=SYNTHETIC,
            caption=f"{caption}: mean and 95 % t-interval over seeds.",
        )
        display(figure)

# %%
if "norm" in parts:
    norm = heterogeneity.norm_panel(parts["norm"], METRIC)
    figure = plotting.norm_panel(norm)
    plotting.save_figure(
        figure, "fig03_norm", data=norm, profile=PROFILE, synthetic=SYNTHETIC,
        caption="Brain MRI, the small CNN with normalisation layers: mean and 95 % t-interval over seeds. With layers at home, "
        "each test image is judged by the model of the hospital that holds it.",
    )
    display(figure)

# %% [markdown]
# ## Would a longer training change the order?
#
# One cell of the grid at three times the rounds.

# %%
if "longer" in parts:
    cell = [run for run in main if run.config["dataset"] == "brain_mri" and run.config["partition"] == "pathological"]
    longer = heterogeneity.longer_run(cell, parts["longer"], METRIC, methods)
    figure = plotting.order_check(longer)
    plotting.save_figure(
        figure, "fig03_longer", data=longer, profile=PROFILE, synthetic=SYNTHETIC,
        caption="The methods' order after the grid's rounds and after three times as many; balanced accuracy on the common test set.",
    )
    display(figure)
    display(Markdown(grid_report.order_in_words(longer)))

# %% [markdown]
# ## What to use when
#
# *not worse*: what cannot be told from the best of the row (paired t over seeds, Holm within the row). The best was picked from the same scores, and five
# seeds tell large differences only: the list says what is not ruled out.

# %%
plotting.save_table(
    advice.drop(columns=["dataset"]), "tab03_advice", profile=PROFILE, synthetic=SYNTHETIC,
    caption="Which methods are not ruled out on each partition, and what beats or loses to FedAvg significantly.",
)
display(advice.drop(columns=["dataset"]))
always = [m for m in methods if advice["not_worse"].str.split(", ").map(lambda names, m=m: m in names).all()]
display(Markdown(f"Not ruled out on any partition: **{', '.join(map(METHOD_LABELS.get, always)) or 'none'}**."))

# %% [markdown]
# ## Try it
#
# Move a slider and the partition changes at once; press *Train* and a small federation on phantoms learns before your eyes. Nothing is recorded.

# %%
playground(profile="smoke" if PROFILE == "smoke" else "quick")

# %% [markdown]
# ## What could be wrong
#
# * **Tuned once.** Settings were chosen on one draw of one partition (Dirichlet 0.5), with one seed. A method that needs other settings on another
#   partition is judged unfairly there, and the winner of six noisy trials is partly luck.
# * **Small images, a small network, few rounds.** The curves show who is still rising. The longer run above checks one cell, not all.
# * **Five seeds**: a difference of one standard deviation is rarely significant after Holm. "Not significant" is not "equal".
# * **Two data sets** share their images over partitions, so the blocks of the rank test are not independent: a guide, not a proof.
# * **Fine-tuning** takes FedAvg's learning rate, which is too large for a small hospital's two passes: a smaller one was not tried.
# * **Libraries differ.** TFF 0.87's own FedProx adds the proximal term with the opposite sign (it pushes away from the common model); here it is the
#   paper's, and a test holds both beside each other. Its optimizers correct the bias of the first rounds, the paper's FedAdam and FedYogi do not.
# * **The feature skew is made up**: tone, sharpness and noise of invented scanners, not those of real vendors.
# * **The upper anchor** takes as many steps as all hospitals together; at equal steps it is lower (table of anchors).
#
# ## Takeaways
#
# 1. Look at who holds what before choosing an algorithm: label skew and size skew cost very different amounts.
# 2. Give every algorithm the same budget of tuning, or the comparison is one of tuning.
# 3. Report the hospitals one by one beside the mean.
#
# ## References
#
# McMahan et al. 2017, arXiv:1602.05629 · Yurochkin et al. 2019, arXiv:1905.12022 · Hsu et al. 2019, arXiv:1909.06335 · Li et al. 2020, arXiv:1812.06127 ·
# Karimireddy et al. 2020, arXiv:1910.06378 · Karimireddy et al. 2021, arXiv:2008.03606 · Reddi et al. 2021, arXiv:2003.00295 · Li et al. 2021, arXiv:2102.07623 ·
# Li et al. 2022, arXiv:2102.02079 · Demsar 2006, JMLR 7, 1-30

# %%
pd.Series(runs[0].environment["versions"], name="version").to_frame()
