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
# # 09 · Can hospitals stay in control of what is computed on their patients?
#
# In notebooks 02 to 08 every hospital trains what the server asks for. Here each hospital's **data owner** decides who may train, with which plan, on which data
# set, how often, and with how much of the patients' privacy budget, and can prove later what happened. The hospitals' own software enforces it, on
# [NVFlare](https://nvflare.readthedocs.io): real processes, mutual TLS, people with certificates and roles.
#
# **You will see** the answer with its intervals; a data set's card; a plan as the owner reads it, with its difference to the one before; everything that is refused,
# by which rule; the budget that a training spends; the model beside the simulation's; sums that the server cannot read; the log, and what becomes of a forged one.
#
# **Time and memory** on 2 cores: a minute when the records are there; profile `quick` trains on phantoms in about 15 minutes, `paper` on real images in about half
# an hour (after notebook 03). Below 6 GB for all processes.
#
# **Data** Chest X-rays from three sources: Kermany et al. 2018 (CC BY 4.0) and NIH ChestX-ray14 by two kinds of device; profile `quick`: phantoms generated here.
# **Not for clinical use.**

# %%
import pandas as pd
from IPython.display import HTML, Markdown, display

from fl_utils import consortium_studies as studies
from fl_utils import plotting
from fl_utils.deployment.nvflare import RULES
from fl_utils.experiments import analysis
from fl_utils.federation_studies import curve_differences

# %% tags=["parameters"]
PROFILE = "quick"
METRIC = "balanced_accuracy"

# %% [markdown]
# ## The runs
#
# One training by FedAvg, as an approved plan by real processes and in TFF's simulation: same images, same initial weights, same seeds, the very same function for a
# hospital's training. And one with DP-SGD for patients, which spends a budget. A call loads the records that are there and runs what is missing: it makes a
# consortium, deals the images, plays both sides of the plan, and puts everything away.

# %%
SYNTHETIC = PROFILE != "paper"
simulated = studies.simulated_runs(PROFILE)
governed = studies.governed_runs(PROFILE, private=False)
private_simulated = studies.private_simulated(PROFILE)
private_governed = studies.governed_runs(PROFILE, private=True)
federated = [run for run in simulated if run.config["method"] == "fedavg"]
others = [run for run in simulated if run.config["method"] != "fedavg"]
config = governed[0].config
print(f"{len(simulated) + len(private_simulated)} simulated runs; {len(governed) + len(private_governed)} governed: {governed[0].environment['deployed']}")

# %% [markdown]
# ## Answer

# %%
story = studies.story(PROFILE)
refusals = story.tables["refusals"]
spent = max(one["epsilon_spent"] for run in private_governed for one in run.environment["governed"])
whole = all(not one["log_problems"] for run in [*governed, *private_governed] for one in run.environment["governed"])
scores = studies.accuracy_table({"governed": governed, "private": private_governed, **{m: analysis.select(others, method=m) for m in ("centralized", "local")}}, METRIC)
scores = scores.set_index("label").apply(analysis.with_interval, axis=1)
display(Markdown(
    f"**Yes, for what their own software can see.** {refusals['tried'].nunique()} attempts to get around the owners were made, and each was refused, by "
    f"{refusals['rule'].nunique()} rules; no run was counted and no budget spent by any of them: {'yes' if refusals['undisturbed'].all() else 'NO'}.\n\n"
    f"**The approved plan gives the simulation's model:** balanced accuracy {scores['governed']}, pooled {scores['centralized']}, each hospital alone "
    f"{scores['local']}.\n\n**With a patient-level budget of epsilon {private_governed[0].config['epsilon']:g}:** {scores['private']}; spent: {spent:.2f}, never more. "
    f"**All logs are whole:** {'yes' if whole else 'NO'}." + ("\n\n*(synthetic phantoms)*" if SYNTHETIC else "")
))

# %%
claims = analysis.claims([*others, *governed], METRIC)
for row in claims.itertuples():
    verdict = "holds" if row.holds else "does NOT hold"
    display(Markdown(f"Approved plan, {row.claim}: **{verdict}**. {row.quantity} {row.estimate:.3f} [{row.low:.3f}, {row.high:.3f}] over test patients."))

# %% [markdown]
# ## Who there is
#
# `fl-utils consortium init --hospitals 4` makes a folder for each member: server, hospitals, people. A person's certificate names a role, ends after 90 days, and can be
# revoked at once.
#
# | role | may | may not |
# | --- | --- | --- |
# | project admin | make and revoke people, look, stop runs | see data, approve, train |
# | data owner, of one hospital | publish, grant, approve, deny, manage accounts | act for another hospital |
# | researcher | ask for cards, hand plans in, fetch what came | bring code, read files of a hospital |
# | observer | look | anything else |
#
# Each hospital enforces these rules, whatever the server says:

# %%
display(HTML(pd.DataFrame(RULES.items(), columns=["rule", "what it asks"]).to_html(index=False)))

# %% [markdown]
# ## The researcher: what is there?
#
# `fl-utils consortium cards cards.json --mock mock` asks the hospitals over NVFlare. A card holds counts, no images; the mock set has the card's classes, parts and
# sizes, is drawn by a program, and lets a researcher develop before anybody approves anything.

# %%
display(story.tables["cards"])

# %% [markdown]
# ## The owner: what is asked?
#
# The plan is one file: model, loss, rounds, privacy, what leaves. Its SHA-256 is what an owner approves; the researcher's signature says whose it is. Below is the plan
# as an owner reads it (`fl-utils owner show`, or the page of `fl-utils owner page`), and its difference to the first try, which the owners denied because it
# had no differential privacy.

# %%
important = [line for line in story.facts["plan"] if not line.startswith("config.")]
print("\n".join(important))
print("\nHash", story.facts["hash"], "\n\nDifference to the plan before:")
print("\n".join(story.facts["difference"]))

# %%
requests = story.tables["requests"]
display(requests[requests["hospital"] == "hospital_1"].fillna("").reset_index(drop=True))

# %% [markdown]
# ## What is refused
#
# One consortium: the researcher goes too far in every way that we could think of; so do an observer and a stranger. The number is how many hospitals
# refused. Whoever was refused is told by which rule, and it stands in the log.

# %%
figure = plotting.rule_matrix(refusals)
plotting.save_figure(
    figure, "fig09_rules", data=refusals, profile=PROFILE, synthetic=SYNTHETIC,
    caption="What was tried against a governed consortium of real processes, and the rule that refused it; the number is of hospitals.",
)
display(figure)

# %%
said = refusals.drop_duplicates(["tried", "rule"])[["tried", "by", "rule", "said"]].reset_index(drop=True)
said = said.assign(said=said["said"].str.slice(0, 150))
plotting.save_table(said, "tab09_refusals", profile=PROFILE, synthetic=SYNTHETIC, caption="The words of the first who refused, by attempt and rule.")
display(HTML(said.to_html(index=False)))

# %% [markdown]
# ## Training, and what it spends
#
# Before each round a hospital looks at every rule again that may have changed, books the round in its database (SQLite, on disk before the training begins), and
# trains. A hospital that is killed in between has spent, not forgotten. Epsilon is composed over **all** plans and runs on the data set, at the owner's delta.

# %%
charges = story.tables["charges"]
figure = plotting.budget_spent(charges, budget=story.facts["epsilon"])
plotting.save_figure(
    figure, "fig09_budget", data=charges, profile=PROFILE, synthetic=SYNTHETIC,
    caption=f"Epsilon (patient level, delta {story.facts['delta']:g}) that the approved plan had spent after each round, by each hospital's own books.",
)
display(figure)
print("\n".join(story.facts["events"][-3:]))

# %% [markdown]
# ## The model
#
# All on the same test images. The private plan trains another network (GroupNorm) with batches of patients and noise; its rate was chosen on validation data in the
# simulation. Every seed of it is a consortium of its own with fresh budgets: repeating a study spends as often as it is repeated.

# %%
groups = {
    "Pooled": analysis.select(others, method="centralized"), "Each hospital alone": analysis.select(others, method="local"),
    "FedAvg, simulated (TFF)": federated, "FedAvg, approved plan (NVFlare)": governed,
    "Private FedAvg, simulated": private_simulated, "Private FedAvg, approved plan": private_governed,
}
looks = dict(zip(groups, ("centralized", "local", "fedavg", "governed", "patient_8", "patient_8")))
table = studies.accuracy_table(groups, METRIC)
table = table.assign(method=table["label"].map(looks), panel=analysis.panel(config["dataset"]))
figure = plotting.intervals(table, x_label="Balanced accuracy on the common test set", decimals=3)
plotting.save_figure(
    figure, "fig09_headline", data=table, profile=PROFILE, synthetic=SYNTHETIC,
    caption="Approved plans by real processes on NVFlare beside the simulation, the pooled model and each hospital alone; mean and 95 % t-interval over seeds. "
    f"Private: DP-SGD at patient level, epsilon {private_governed[0].config['epsilon']:g} at delta {private_governed[0].config['delta']:g}.",
)
display(figure)

# %%
shown = claims.assign(value=claims.apply(lambda row: f"{row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", axis=1))
shown = shown[["dataset", "claim", "quantity", "value", "p_value", "p_holm", "holds"]]
plotting.save_table(
    shown, "tab09_claims", profile=PROFILE, synthetic=SYNTHETIC,
    caption="Both claims for the approved plan. value: bootstrap over test patients; p-values: paired t over seeds, Holm-corrected.",
)
display(shown)

# %% [markdown]
# ## Does it agree with the simulation?
#
# Two looks. Small trainings, three rounds: the largest difference between any two weights; at most 1e-5 is asked for. And the real training's curve, round by round:
# there rounding alone leads two trainings apart (notebook 08), so what counts is the mean over seeds.

# %%
agreement = studies.agreement(PROFILE)
readable = agreement.assign(**{name: agreement[name].map("{:.1e}".format) for name in ("distance", "moved")})
plotting.save_table(
    readable, "tab09_agreement", profile="phantoms" if PROFILE == "paper" else PROFILE, synthetic=True,
    caption="Largest difference between the weights after three rounds of small trainings; moved: how far training took them.",
)
display(readable)
plain = agreement[~agreement["pair"].str.contains("CKKS")]
print(f"largest distance {plain['distance'].max():.1e}, at most {studies.TOLERANCE:.0e}: {'holds' if plain['distance'].max() <= studies.TOLERANCE else 'does NOT hold'}")

# %%
curves = pd.concat([analysis.curves(federated, METRIC), analysis.curves(governed, METRIC).assign(method="governed")])
curves = curves.assign(panel=analysis.panel(config["dataset"]))
figure = plotting.learning_curves(curves, y_label="Test balanced accuracy")
plotting.save_figure(
    figure, "fig09_curves", data=curves, profile=PROFILE, synthetic=SYNTHETIC,
    caption="The federation in TFF's simulation and as an approved plan on NVFlare, same seeds; band: 95 % t-interval over seeds.",
)
display(figure)
beside = curve_differences(federated, governed, METRIC)
plotting.save_table(beside, "tab09_curve", profile=PROFILE, synthetic=SYNTHETIC, caption="How far the governed curve lies from the simulated one.")
display(beside)

# %% [markdown]
# ## Sums that the server cannot read
#
# The same plan with `encrypted`: updates leave the hospital as CKKS ciphertexts (NVFlare's filters), the server adds them and sends the sum back; it holds no plain
# model, and so cannot pick the best round: the last one counts. **The limit:** all hospitals share one secret key. A server together with one hospital reads
# everything; a hospital that sees the line reads the others' updates. Shares without a common key are in notebooks 06 and 08.

# %%
cipher = studies.encrypted_run(PROFILE)
final = cipher.tables["metrics"].query("client == 'all' and split == 'test' and metric == @METRIC").sort_values("round")
seed = config["seed"]
same = analysis.curves(governed[:1], METRIC).set_index("round")["value"]
print(f"last round, seed {seed}: encrypted {final['value'].iloc[-1]:.4f}, plain {same.iloc[-1]:.4f}")
print("what the server has of it:", ", ".join(cipher.facts["files"]))

# %% [markdown]
# ## The log
#
# Each hospital writes an entry for every request, decision, round, charge, refusal, and for what it sent (bytes and SHA-256). An entry holds the hash of the one before;
# with every answer the number and hash of the last entry go to the server, so that others know how far the log had come. `fl-utils audit-log verify` checks all that.

# %%
log = story.tables["log"].fillna("")
display(HTML(log.tail(18).to_html(index=False)))
print("problems in the hospitals' logs:", {name: len(found) for name, found in story.facts["problems"].items()})

# %%
forged = pd.DataFrame([(hand, len(found), found[0] if found else "nothing") for hand, found in story.facts["tampered"].items()], columns=["what was done to a copy", "problems", "the first"])
plotting.save_table(forged, "tab09_forged", profile=PROFILE, synthetic=SYNTHETIC, caption="What the check of the audit log says of forged copies.")
display(HTML(forged.to_html(index=False)))

# %% [markdown]
# ## What could be wrong
#
# - **The rules bind people and programs, not the machine's administrator.** Who has root at a hospital can read its images, and rewrite log and database together; the
#   heads that others hold then no longer fit.
# - **A budget protects training patients.** Scores on validation and test patients are exact counts, outside the budget; the card's counts are public.
# - **An approved plan is trusted to be what it says.** The owner reads settings; the code behind them is this package, installed at the hospital.
# - **The server sees each plain update** (what that gives away: notebook 06), unless the plan is encrypted, with the limit said there.
# - **Three hospitals of one machine**; two of them are one institution's patients by kind of X-ray device. Source goes with label and age.
# - **Refused is what we tried.** The end-to-end tests try more (`tests/end_to_end/test_consortium*.py`), and no list is complete.
# - **Revocation reaches hospitals elsewhere as fast as the signed list does**; on one machine at once.
#
# ## Takeaways
#
# - Who decides can be enforced where the data is: by hash, signature, role, count and budget, with the reason told and logged.
# - Governance changes no weight: an approved plan trains what the simulation trains.
# - Privacy for patients costs accuracy here (another network, too, because this one does not train with noise); the budget says when it is spent.
#
# **References** Roth et al. 2022, NVIDIA FLARE, arXiv:2210.13291 · Abadi et al. 2016, DP-SGD, arXiv:1607.00133 · Cheon et al. 2017, CKKS,
# doi:10.1007/978-3-319-70694-8_15 · Kaissis et al. 2021, PriMIA, doi:10.1038/s42256-021-00337-8 · Ziller et al. 2021, PySyft, doi:10.1007/978-3-030-70604-3_5

# %%
environment = governed[0].environment
print({**environment["versions"], "nvflare": environment["nvflare"]}, "commit", environment["git_commit"][:12])
