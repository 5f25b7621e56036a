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
# # 06 · What does privacy cost a federation, and what does it buy?
#
# "The images never leave the hospital" is true of federated learning, and it is not privacy: updates and models leave. Here the updates are attacked,
# then the models, with nothing protected and under each protection; and each protection is paid for in accuracy, time and bytes.
#
# **You will see** the answer with its intervals; X-rays rebuilt from an update, beside the originals; how many training patients a released model
# gives away; accuracy against epsilon, for patients and for hospitals as the unit; a number in shares that nobody holds; sums that the server cannot
# read; a grid of protections with what each leaves open; how to choose; and what nobody should claim.
#
# **Time and memory** on 2 cores: two minutes when the records are there; profile `quick` trains and attacks on phantoms in about 5 minutes, `paper`
# (real images) in about two hours. Below 3 GB a process.
#
# **Data** Chest X-Ray Images (Pneumonia), Kermany et al. 2018, CC BY 4.0; Brain Tumor Classification (MRI), Bhuvaji et al. 2020, MIT; profile `quick`:
# phantoms generated here. **Not for clinical use.**

# %%
from IPython.display import Markdown, display

from fl_utils import plotting
from fl_utils.data import DataError
from fl_utils.experiments import analysis, inversion_runs, membership_runs, plans, privacy_answer, privacy_plan, privacy_report, secure_sums
from fl_utils.trust.accounting import noise_multiplier_for
from fl_utils.trust.budget import PrivacyBudget, PrivacyBudgetExceeded
from fl_utils.trust.terms import patient_terms

# %% tags=["parameters"]
PROFILE = "quick"

# %% [markdown]
# ## Who could attack
#
# | Attacker | Sees | Attack measured here |
# | --- | --- | --- |
# | the server, curious but honest | every hospital's update, every round | gradient inversion of an update |
# | another hospital | the common model after each round, so the mean of the others' updates | gradient inversion of a mean |
# | whoever is given the model | its answers for an image | membership inference: was this patient in the training set? |
#
# All runs are the small CNN on five even hospitals, FedAvg, 32-pixel images, without augmentation. Classes weigh alike, from the federation's class
# shares, which are taken as public. Learning rates, or clipping norms, were chosen on validation data with three trials an arm. One call loads what is there and makes what is
# missing.

# %%
SYNTHETIC = PROFILE != "paper"
settings, datasets = privacy_plan.SETTINGS[PROFILE], privacy_plan.datasets_of(PROFILE)
runs = [run for name in datasets for run in plans.sweep(privacy_plan.configs_06(PROFILE, name), experiment=privacy_plan.PRIVACY, keep_diverged=True)]
inverted = [inversion_runs.invert(PROFILE, name, seed) for name in datasets for seed in settings.seeds]
attacked = [membership_runs.attack_members(PROFILE, name, arm) for name in datasets for arm in settings.membership_arms]
secret = {name: secure_sums.measure(PROFILE, record=analysis.select(runs, dataset=name, encrypted=False, privacy_unit=None, method="fedavg")[0])
          for name in datasets}
display(privacy_plan.overview(PROFILE))

# %% [markdown]
# ## Answer

# %%
accuracy, inversion = privacy_report.accuracy_table(runs), privacy_report.inversion_table(inverted)
membership, same = privacy_report.membership_summary(attacked), privacy_report.same_model(runs)
for text in privacy_answer.answer(accuracy, inversion, membership, same):
    display(Markdown(text + (" *(synthetic phantoms)*" if SYNTHETIC else "")))

# %% [markdown]
# ## What an update gives away
#
# The attacker knows the model and the update, the number of images and their labels, and searches for images whose update is the one it saw (Zhu et al.
# 2019; Geiping et al. 2020). Each dot is a patient's image. The measure is not zero but what *another* real image reaches: one taken at random, and the
# most alike of a hundred, which no attacker could pick.

# %%
points = privacy_report.inversion_points(inverted)
figure = plotting.inversion_scores(points)
plotting.save_figure(figure, "fig06_inversion", data=points, profile=PROFILE, synthetic=SYNTHETIC,
                     caption="Gradient inversion: SSIM of reconstructions with the originals, a dot an image; 5 seeds in profile paper.")
display(figure)

# %%
for one in (one for one in inverted if one.seed == 0):
    try:
        originals, shown, names, texts = inversion_runs.gallery(PROFILE, one)
    except DataError as error:
        print(f"{one.dataset}: {error}")
        continue
    figure = plotting.reconstruction_grid(originals, shown, names, texts)
    display(Markdown(f"**{analysis.panel(one.dataset)}**, first seed; real images are shown here and stored nowhere else"), figure)

# %%
columns = ["panel", "label", "images", "mean", "low", "high", "random_other", "best_other", "above", "p_holm", "works", "identified", "labels_right", "seconds"]
shown = inversion.reindex(columns=columns)
plotting.save_table(shown, "tab06_inversion", profile=PROFILE, synthetic=SYNTHETIC,
                    caption="Gradient inversion, mean over seeds of SSIM with 95 % t-interval; `works`: better than a random other image, paired t, Holm.")
psnr = privacy_report.inversion_table(inverted, "psnr_db")
plotting.save_table(psnr.reindex(columns=columns), "tab06_inversion_psnr", profile=PROFILE, synthetic=SYNTHETIC,
                    caption="The same in PSNR, dB.")
display(shown.round(3))

# %% [markdown]
# *Identified* counts reconstructions that are more like their original than like any of a hundred other images. Wrong readings of this table: *"batches and
# local steps protect"*: where the search fails here, the labels are mostly read from the last layer all the same, the same network without GroupNorm gives
# more away, and better attacks exist; *"a little noise is enough"*: look at the row with a noise multiplier of 0.01, for which no epsilon worth the name
# exists. A failed attack is no protection that can be stated; an epsilon is.
#
# ## Was a patient in the training set?
#
# The attacked models are trained on half of the training patients, the other half are strangers of the same kind. *Loss threshold*: members have a smaller
# loss (Yeom et al. 2018). *LiRA*: is the model's confidence more like that of models with this image or without it (Carlini et al. 2022), with the
# number of shadow models in the table. Counted by patient, at one false alarm in a hundred.

# %%
by_patient = membership[membership["unit"] == "patient"]
for metric, words in {"auc": "Area under the ROC curve", "tpr_at_fpr": "Training patients found at 1 % false alarms"}.items():
    figure = plotting.membership_points(by_patient, metric=metric, interval_label="95 % interval over attacked models")
    plotting.save_figure(figure, f"fig06_membership_{metric}", data=by_patient[by_patient["metric"] == metric], profile=PROFILE,
                         synthetic=SYNTHETIC, caption=f"{words}, by patient: mean and 95 % t-interval over attacked models.")
    display(figure)

# %%
curves = privacy_report.membership_curves(attacked)
figure = plotting.membership_roc(curves)
plotting.save_figure(figure, "fig06_membership_roc", data=curves, profile=PROFILE, synthetic=SYNTHETIC,
                     caption="Membership by patient, mean curve over attacked models; LiRA where its shadow models were trained, else the loss threshold.")
plotting.save_table(membership, "tab06_membership", profile=PROFILE, synthetic=SYNTHETIC,
                    caption="Membership inference: mean and 95 % t-interval over attacked models; gap: accuracy on members minus on others.")
display(figure)
display(by_patient[by_patient["metric"] != "advantage"].drop(columns=["dataset", "arm", "unit"]).round(3).reset_index(drop=True))

# %% [markdown]
# ## Differential privacy, for two units that must not be mixed up
#
# *Patient level*: in each step a hospital clips every patient's gradient (all of a patient's images together) and adds noise; nobody, the server included,
# sees it without. *Hospital level*: the **server** clips and noises the hospitals' updates; it hides which hospitals took part from those who get the model,
# and it is the server that is trusted. An epsilon means nothing without its unit, its delta and its sampling, so each run's record says:

# %%
for (dataset, arm), members in privacy_report.by_arm(runs).items():
    if dataset == datasets[0] and "privacy" in members[-1].environment:
        privacy = members[-1].environment["privacy"]
        print(f"{arm:24} z = {privacy['noise_multiplier']:.2f}  {privacy['statement']}")

# %%
figure = plotting.privacy_frontier(privacy_report.frontier(accuracy, privacy_answer.classes_of(runs)))
plotting.save_figure(figure, "fig06_frontier", data=accuracy, profile=PROFILE, synthetic=SYNTHETIC,
                     caption="Balanced accuracy on the test set against epsilon, mean and 95 % t-interval over seeds.")
plotting.save_table(accuracy.drop(columns="dataset"), "tab06_accuracy", profile=PROFILE, synthetic=SYNTHETIC,
                    caption="Every arm: mean, 95 % t-interval over seeds, paired difference to the unprotected federation of as many hospitals, Holm.")
display(figure)

# %% [markdown]
# Noise is divided by the number of those who share it: by the patients of a hospital, or by the hospitals. Five hospitals are five *units*: to hide one of
# them, the noise must be as large as what one of them contributes. Fifty help; a consortium rarely has them. If the unit to protect is the patient,
# hospital-level privacy is the wrong tool.
#
# A budget is asked before each round, and refuses the one that would overspend:

# %%
plan = patient_terms(num_patients=600, patients_per_step=64, steps=90, delta=1e-4)
budget, spent = PrivacyBudget(unit="patient", epsilon=3.0, delta=1e-4), []
noise = noise_multiplier_for(3.0, plan)
each = patient_terms(num_patients=600, patients_per_step=64, steps=9, delta=1e-4)
try:
    while True:
        spent.append(budget.charge(noise, each))
except PrivacyBudgetExceeded as refused:
    print("epsilon after each round:", ", ".join(f"{value:.2f}" for value in spent), f"\nround {len(spent) + 1}:", refused)

# %% [markdown]
# ## Sums that nobody reads
#
# The number 5, split into three shares (Shamir 1979): any two give it back, one alone fits every number. Hospitals that share their numbers so, and add
# the shares they hold, get the sum, and no one sees a number of another.

# %%
five = secure_sums.five_in_shares(5)
print("the shares of 5:", dict(five.itertuples(index=False)), "| two of them give", secure_sums.recombined(five.head(2)))
display(secure_sums.what_one_share_tells(five), secure_sums.sum_in_shares())

# %% [markdown]
# The same with updates of the trained model: in plain, by CKKS (numbers are added as ciphertexts; the server holds no key; the hospitals share one), and by
# Shamir shares between real processes. Decrypted CKKS sums stay with the hospitals: handed to the server they could betray the key (Li and Micciancio 2021).
# Shamir as used here withstands parties who look, not parties who lie.

# %%
for name, measured in secret.items():
    table = measured.aggregation
    display(Markdown(f"**{analysis.panel(name)}**, {measured.facts['num_parameters']:,} parameters"), table.round(10))
    plotting.save_table(table, f"tab06_secure_sums_{name}", profile=PROFILE, synthetic=SYNTHETIC,
                        caption="One round's weighted mean of the hospitals' updates; seconds on this machine, median of 3.")

# %% [markdown]
# Encrypted inference: a data owner encrypts the features of an X-ray, the model's owner computes the last layer on the ciphertext, the data owner decrypts
# the logits. The softmax is taken in plain, since a polynomial for it would cost a larger ring. The layers before the last are computed in plain by the data
# owner, who so holds them.

# %%
for name, measured in secret.items():
    display(measured.head.round(6).head(4))
    plotting.save_table(measured.head, f"tab06_encrypted_head_{name}", profile=PROFILE, synthetic=SYNTHETIC,
                        caption="The last layer computed on encrypted features of test images.")

# %% [markdown]
# The sums are exact to the error above; the trained models are not the same digit by digit. The plain arm runs in TFF, the encrypted one in a loop of its
# own; both round float32, in another order, and hundreds of gradient steps amplify the last digit. How far that goes:

# %%
plotting.save_table(same, "tab06_same_model", profile=PROFILE, synthetic=SYNTHETIC,
                    caption="Test predictions of the encrypted and the plain federation of one seed; their accuracies are compared in tab06_accuracy.")
display(same.drop(columns="dataset").round(3))

# %% [markdown]
# ## The grid

# %%
grid = privacy_answer.protection_grid(accuracy, inversion, membership, privacy_answer.upload_of(secret[datasets[0]].aggregation))
figure = plotting.protection_heatmap(grid)
plotting.save_figure(figure, "fig06_grid", data=grid, profile=PROFILE, synthetic=SYNTHETIC,
                     caption="Protection by what it costs and stops. Encrypted sums: the server has no input to attack.")
display(figure)

# %%
table = privacy_answer.grid_table(grid)
plotting.save_table(table, "tab06_grid", profile=PROFILE, synthetic=SYNTHETIC, caption="The grid with what each protection leaves open.")
display(table.style.hide(axis="index").set_properties(**{"text-align": "left"}))

# %% [markdown]
# ## How to choose
#
# * **Whom do you distrust?** The server: encrypt the sum, or let the hospitals add noise. Those who get the model: only noise helps. Both: both.
# * **Can you pay for noise?** Patient-level noise is divided by a hospital's patients. Read the frontier at your size before promising an epsilon; compare
#   with *each hospital alone*, which needs no protection at all.
# * **Encrypt where you can**: it costs bytes and seconds, not accuracy. It hides single updates, not the sum.
# * **Do not count on** larger batches, more local steps, or "our attack failed".
#
# The noise in a step's mean gradient, in shares of the largest gradient that one patient may have, by the size of a hospital (the accountant's answer,
# nothing is trained; a fifth of the patients a step, eight passes):

# %%
sizes = privacy_report.noise_by_size()
plotting.save_table(sizes, "tab06_noise_by_size", profile=PROFILE, synthetic=SYNTHETIC,
                    caption="Deviation of the noise in a step's mean gradient, in clipping norms, by patients of a hospital.")
display(sizes)

# %% [markdown]
# ## What nobody should claim
#
# * That federated learning is private because images stay at home.
# * An epsilon without unit, delta, sampling, number of steps, and who adds the noise.
# * That a hospital-level epsilon protects the hospital from the server, or that a patient-level epsilon is that of a hospital.
# * That encryption protects patients from those who receive the model.
# * That a failed attack, here or anywhere, shows that data is safe.
#
# ## What could be wrong
#
# * **The attacks are not the best there are.** One search from one start, small images, no knowledge of what an X-ray looks like. They bound the leak from
#   below; only an epsilon bounds it from above.
# * **Brain MRI names no patients.** The unit there is a group of near-duplicate or consecutive slices, the best stand-in at hand; the true unit may be larger.
# * **Few shadow models.** LiRA with fifteen is weak at very small false-alarm rates.
# * **Settings and rounds were chosen on validation data** without noise. Their patients are not the training patients, and are not covered by epsilon.
# * **Noise from a seed.** Patient-level noise is drawn from the run's seed so that a run can be repeated; in earnest it must come from the operating system.
# * **Times** were measured in the sweep, one core a run, two runs at a time.
#
# ## References
#
# McMahan et al. 2018, arXiv:1710.06963 · Abadi et al. 2016, arXiv:1607.00133 · Andrew et al. 2021, arXiv:1905.03871 · Koskela et al. 2020, arXiv:1906.03049 ·
# Zhu et al. 2019, arXiv:1906.08935 · Geiping et al. 2020, arXiv:2003.14053 · Zhao et al. 2020, arXiv:2001.02610 · Yeom et al. 2018, arXiv:1709.01604 ·
# Carlini et al. 2022, arXiv:2112.03570 · Cheon et al. 2017, eprint 2016/421 · Li and Micciancio 2021, eprint 2020/1533 · Shamir 1979, doi:10.1145/359168.359176

# %%
display(runs[0].environment["versions"])
