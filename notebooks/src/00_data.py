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
# # 00 · What is in the data, and how much of a score is leakage?
#
# A score is worth what its test set is worth. This notebook looks for copies, near-copies, patients and labels on both sides of a
# split, asks what can be told without looking at the patient at all, and measures what leakage adds to a score. The answers stand below
# as soon as the records are loaded.
#
# **You will see** the audit of every data set at hand; pairs of pictures that are nearly the same; how well file size, borders and brightness
# alone give the label and the hospital away; the same model on splits that keep less and less together; phantoms, and beside
# them real images.
#
# **Time and memory** on 2 cores: with the records 2 to 4 minutes, most of it for the probes; `paper` trains half an hour where records are
# missing. Below 3 GB.
#
# **Data** the data sets of `data/README.md` that are on this machine, each with its own licence; or phantoms generated here.
# **Not for clinical use.**

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from fl_utils import plotting
from fl_utils.data import CARDS, DataError, audit, card, load_dataset
from fl_utils.data.near import NEAR_DISTANCE, looked_at, pair_distances
from fl_utils.data.overview import sheet_rows, volume_overview
from fl_utils.data.shortcuts import shortcut_probe
from fl_utils.experiments import analysis, leakage, plans

# %% tags=["parameters"]
PROFILE = "quick"
METRIC = "balanced_accuracy"
REAL = ["brain_mri", "chest_xray", "covid19", "nih", "pneumoniamnist", "xray_sites"]
PHANTOMS = ["phantom_brain", "phantom_chest", "phantom_oct"]
VOLUMES = ["hippocampus", "brats2020", "msd_brain"]

# %% [markdown]
# ## The runs
#
# One call loads the records that are there and trains what is missing. Phantoms share nothing with each other, so on them there is
# nothing to train here.

# %%
SYNTHETIC = PROFILE != "paper"
settings = plans.settings_of(PROFILE)
configs = [config for name in plans.datasets_of(PROFILE) for config in leakage.configs_00(PROFILE, name)]
runs = plans.sweep(configs, experiment=leakage.LEAKAGE)
ladder, same_test = leakage.ladder(runs, METRIC), leakage.same_test(runs, METRIC)
print(f"{len(runs)} runs: {', '.join(dict.fromkeys(run.config['dataset'] for run in runs)) or 'none on phantoms'}")

# %% [markdown]
# ## Answer

# %%
for row in ladder[ladder["split"] == "random"].itertuples() if len(ladder) else []:
    display(Markdown(
        f"**{analysis.panel(row.dataset)}**: cut at random, file by file, the same model scores **{row.excess:+.3f}** "
        f"[{row.excess_low:+.3f}, {row.excess_high:+.3f}] against the leak-free split (balanced accuracy, {row.seeds} seeds, "
        f"each with a split of its own)."
    ))
for row in same_test[same_test["split"] == "published_thinned"].itertuples() if len(same_test) else []:
    display(Markdown(
        f"**{analysis.panel(row.dataset)}, the published test part**: training images that are tied to it are worth **{row.difference:+.3f}** "
        f"[{row.low:+.3f}, {row.high:+.3f}] over seeds, [{row.patient_low:+.3f}, {row.patient_high:+.3f}] over test pictures, against as "
        f"many others."
    ))

# %% [markdown]
# ## The data sets
#
# One card each, in `data/README.md` with licence, ethics, faults and citation. `fl-utils data fetch NAME` gets one, `verify` reads every file.

# %%
data = {}
for name in PHANTOMS if SYNTHETIC else REAL:
    try:
        data[name] = load_dataset(name, image_size_px=settings.image_size_px, num_images=settings.num_images)
    except DataError:
        print(f"{name} is not here, or not whole: `fl-utils data audit {name}` says what is wrong.")
volumes = {}
for name in [] if SYNTHETIC else VOLUMES:
    try:
        volumes[name] = volume_overview(name)
    except DataError:
        print(f"{name} is not here, or not whole: `fl-utils data audit {name}` says what is wrong.")
cards = [{"name": c.name, "task": c.task, "modality": c.modality.split(",")[0], "licence": c.licence[:40]} for c in CARDS.values()]
display(pd.DataFrame(cards).assign(here=lambda t: t["name"].isin([*data, *volumes])))

# %% [markdown]
# ## The audit
#
# *Duplicate groups* are files with the same bytes; *pictures* are told by their pixels; *near-duplicates* by a perceptual
# hash. "Cross" means: in the published train and in the published test part. *Independent groups* share no picture, near-duplicate, patient
# or series; the suite's splits and hospitals are made of whole ones.

# %%
reports = {name: audit(dataset) for name, dataset in (data | volumes).items()}
if reports:
    found = pd.DataFrame({name: report.counts() for name, report in reports.items()})
    plotting.save_table(
        found.reset_index(names="count"), "tab00_audit", profile=PROFILE, synthetic=SYNTHETIC,
        caption="What the audit found in the data sets at hand; see fl_utils.data.audit.AuditReport for each count.",
    )
    display(found)

# %%
if reports:
    shown = [name for name in data if name in ("brain_mri", "chest_xray", "covid19", *PHANTOMS)]
    counts = pd.concat([reports[name].table.assign(panel=card(name).label) for name in shown])
    counts = counts.rename(columns={"split": "part", "class": "class_name", "files": "count", "near_in_other_split": "duplicates"})
    figure = plotting.class_counts(counts[["panel", "part", "class_name", "count", "duplicates"]])
    plotting.save_figure(
        figure, "fig00_class_counts", data=counts, profile=PROFILE, synthetic=SYNTHETIC,
        caption="Images by class in the published parts; hatched: the same picture or a near-duplicate is in the other part too.",
    )
    display(figure)

# %% [markdown]
# ## Near-duplicates
#
# The distance of two pictures is the number of bits in which their 256-bit perceptual hashes differ. Chest X-ray sets the threshold: its
# patients are numbered, and no two patients are nearer than 38 bits, so up to 36 bits nobody is taken for somebody else. In brain MRI,
# which numbers nobody, the same threshold finds hundreds of pairs.

# %%
real = {name: data[name] for name in ("brain_mri", "chest_xray", "covid19", "nih") if name in data}
distances = [pair_distances(d.hashes, d.picture_groups).assign(label=card(name).label) for name, d in real.items()]
if distances:
    figure = plotting.pair_distances(pd.concat(distances), threshold=NEAR_DISTANCE)
    plotting.save_figure(
        figure, "fig00_near_duplicates", data=pd.concat(distances), profile=PROFILE, synthetic=SYNTHETIC,
        caption="Pairs of different pictures by the distance of their perceptual hashes, added up from the left.",
    )
    display(figure)

# %% [markdown]
# 120 brain MRI pairs, drawn at random from six bands of distance, were looked at by the authors (no radiologist). Below: how they were
# judged, and two pairs of each band.

# %%
looked = looked_at()
looked["band"] = pd.cut(looked["distance"], [0, 12, 24, 30, 36, 42, 48]).astype(str)
display(looked.groupby("band", sort=False)["verdict"].value_counts().unstack(fill_value=0))
if "brain_mri" in data:
    place = {source: number for number, source in enumerate(data["brain_mri"].sources)}
    shown = looked[looked["first"].isin(place) & looked["second"].isin(place)].groupby("band", sort=False).head(2)
    pairs = [data["brain_mri"].images[shown[side].map(place)] for side in ("first", "second")]
    display(plotting.pair_gallery(*pairs, [f"{row.distance} bits: {row.verdict}" for row in shown.itertuples()]))

# %% [markdown]
# Some near-duplicates bear **different labels**. One of the two must be wrong, and no split mends that.

# %%
for name, dataset in data.items():
    labels = pd.DataFrame({"near": dataset.near_groups, "class": [str(label) for label in dataset.labels]})
    torn = labels[labels.groupby("near")["class"].transform("nunique") > 1].drop_duplicates()
    firsts = [group.index[:2].tolist() for _, group in torn.groupby("near")][:4]
    if firsts and not dataset.is_multi_label:
        titles = [" | ".join(dataset.class_names[dataset.labels[i]] for i in pair) for pair in firsts]
        display(Markdown(f"{card(name).label}: {reports[name].near_label_conflicts} groups"))
        display(plotting.pair_gallery(*(dataset.images[list(side)] for side in zip(*firsts)), titles))

# %% [markdown]
# ## Shortcuts: what can be told without looking at the patient?
#
# A random forest sees only file size, image size, colour mode and file type, the outer 5 % of the image, or the mean brightness. It is
# cross-validated over whole groups. A model that sees the image can use all of this, too, so a score near the probe's needs no medicine.

# %%
probes = []
for name, dataset in data.items():
    targets = ["label"] + ["hospital"] * (name in ("xray_sites", *PHANTOMS))
    for target in targets:
        probes.append(shortcut_probe(dataset, target=target).assign(dataset=name, target=target))
if probes:
    probes = pd.concat(probes, ignore_index=True)
    display(probes.pivot_table(index=["dataset", "target"], columns="cues", values="balanced_accuracy").round(2))

# %%
if len(probes):
    drawn = probes[(probes["target"] == "label") & probes["dataset"].isin(["brain_mri", "chest_xray", "covid19", *PHANTOMS])]
    drawn = drawn.assign(panel=drawn["dataset"].map(analysis.panel), label=drawn["cues"], method="probe", mean=drawn["balanced_accuracy"],
                         reference=drawn["chance"])
    figure = plotting.intervals(drawn, x_label="Balanced accuracy for the label", interval_label="95 % bootstrap over groups",
                                reference_label="chance")
    plotting.save_figure(
        figure, "fig00_shortcuts", data=probes, profile=PROFILE, synthetic=SYNTHETIC,
        caption="How well a random forest tells the label from cues that have nothing to do with the patient, in cross-validation "
        "over groups. The plotted data holds all data sets and the hospital as a target.",
    )
    display(figure)

# %%
for row in ladder[ladder["split"] == "deduplicated"].itertuples() if len(ladder) and len(probes) else []:
    blind = probes.query("dataset == @row.dataset and target == 'label' and cues == 'all together'")
    for probe in blind.itertuples():
        display(Markdown(
            f"**{analysis.panel(row.dataset)}**: all cues together {probe.balanced_accuracy:.3f} [{probe.low:.3f}, {probe.high:.3f}]; the "
            f"three-layer CNN, which sees the picture, {row.mean:.3f} [{row.low:.3f}, {row.high:.3f}] (below, the suite's split)."
        ))

# %% [markdown]
# ## What is leakage worth?
#
# **Splits that keep less and less together.** The model (three-layer CNN, pooled data), its settings and seeds are the same; each seed has a
# split of its own, so the interval holds the choice of the test images, too.

# %%
if len(ladder):
    steps = ladder.assign(panel=ladder["dataset"].map(analysis.panel), label=ladder["kept_together"], method="seed_cnn")
    figure = plotting.intervals(steps, x_label="Balanced accuracy on the test set", decimals=3,
                                interval_label="mean and 95 % interval over seeds, each with its own split")
    plotting.save_figure(
        figure, "fig00_leakage", data=steps, profile=PROFILE, synthetic=SYNTHETIC,
        caption="The same model on splits that keep together what the row says.",
    )
    display(figure, ladder.round(3))

# %% [markdown]
# **The published test part of brain MRI**, three times the same: with the training part as published, without all that is tied to the
# test part, and, as a control, without as many others of each class.

# %%
if len(same_test):
    plotting.save_table(
        same_test, "tab00_same_test", profile=PROFILE, synthetic=SYNTHETIC,
        caption="Balanced accuracy on the published test part: the training part as published, or with as many others left out, "
        "against without what is tied to the test part. Paired t over seeds, bootstrap over test pictures, Holm's correction.",
    )
    display(same_test.round(3))

# %% [markdown]
# ## Hospitals in the data
#
# Where the data has natural hospitals, each keeps what it has (`partition="natural"`). COVID-19 was meant to be the third X-ray hospital; the audit
# shows that its normal and viral pneumonia images are pictures of the chest X-ray set, so patients of NIH with a portable device take
# its place. On phantoms, each hospital has a scanner of its own.

# %%
for name in [name for name in data if name in ("xray_sites", "nih", *PHANTOMS)]:
    dataset = data[name]
    index, rows, titles = sheet_rows(dataset)
    held = pd.Series([titles[row] for row in rows]).value_counts().rename_axis("row").rename("count").reset_index()
    held[["class_name", "client"]] = held["row"].str.split(", ", n=1, expand=True)
    if dataset.is_multi_label:
        display(held.pivot(index="class_name", columns="client", values="count").fillna(0).astype(int))
        continue
    figure = plotting.partition_heatmap(held[["client", "class_name", "count"]].sort_values(["client", "class_name"]))
    plotting.save_figure(figure, f"fig00_hospitals_{name}", data=held, profile=PROFILE, synthetic=SYNTHETIC,
                         caption=f"{card(name).label}: images of each class in each natural hospital.")
    display(figure)

# %%
for name in [name for name in data if name in ("xray_sites", *PHANTOMS)]:
    one_class = data[name].subset(data[name].labels == 0)
    index, rows, titles = sheet_rows(one_class)
    display(Markdown(card(name).label), plotting.image_gallery(one_class.images[index], rows, titles, per_class=6))

# %% [markdown]
# ## Phantoms beside real images
#
# Phantoms are drawn: brains on the MNI152 template (Fonov et al. 2011), chests and retinas from shapes. They are for learning how the suite
# works and for lesions whose place is known to the pixel. Nothing measured on them says anything about patients. *In each row the first
# three are phantoms; the next three, if there are any, are real.*

# %%
for twin, name in (("phantom_brain", "brain_mri"), ("phantom_chest", "chest_xray"), ("phantom_oct", "")):
    parts = [load_dataset(twin, image_size_px=44, num_images=40)]
    if name in data:  # the same decoding at this size, then shown beside
        parts.append(load_dataset(name, image_size_px=44))
    few = [np.concatenate([np.flatnonzero(d.labels == k)[:3] for k in range(d.num_classes)]) for d in parts]
    images = np.concatenate([d.images[index] for d, index in zip(parts, few)])
    labels = np.concatenate([d.labels[index] for d, index in zip(parts, few)])
    names = [f"{label}, {'phantom | real' if len(parts) > 1 else 'phantom'}" for label in parts[0].class_names]
    display(plotting.image_gallery(images, labels, names, per_class=6))

# %% [markdown]
# How well a model learns the phantoms of profile `quick` is drawn in notebook 01 when it runs in that profile.
#
# ## What could be wrong
#
# * **Patients of brain MRI are not known.** Near-duplicates and blocks of numbered files stand in for them. Slices of one patient in another plane
#   can still lie on both sides, so even the leak-free score may be too high.
# * **The threshold was set by eye and by one other data set.** Stricter or looser thresholds tie fewer or more pairs; `looked_at` holds every
#   judgement, to be disputed.
# * **A split that leaks less also has a harder, or merely another, test set.** The comparison on the published test part holds the test set fixed, and
#   the number of training images with its control.
# * **Probes show that a cue is there, not that a model uses it.** Notebook 04 looks where the model looks.
# * **Some copies at hand are not the published ones** (see `fl-utils data verify`): chest X-ray was re-encoded to 224 pixels, NIH is a part.
#
# ## Takeaways
#
# 1. Compare pixels, not bytes, and then compare pictures, not pixels.
# 2. Ask what the border knows before asking what the model knows.
# 3. Data sets share images with each other, not only with themselves: audit across them before calling them hospitals.
#
# ## References
#
# Cheng 2017, doi:10.6084/m9.figshare.1512427 · Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033 · Kapoor and Narayanan 2023,
# doi:10.1016/j.patter.2023.100804 (leakage) · Kermany et al. 2018, doi:10.1016/j.cell.2018.02.010 · Wang et al. 2017,
# doi:10.1109/CVPR.2017.369 · Zauner 2010 (perceptual hashing), phash.org/docs/pubs/thesis_zauner.pdf

# %%
versions = pd.Series(runs[0].environment["versions"], name="version").to_frame() if runs else pd.DataFrame({"version": []})
versions
