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
# # 08 · Do four hospitals as real processes get what the simulation promised?
#
# Notebooks 02 to 07 simulate a federation in one program. Here it is real: a server and four hospitals, each a process of its own that could stand on a machine
# of its own, on [Flower](https://flower.ai)'s deployment engine, encrypted in transit, each hospital known by its key. Nobody hands images to anybody.
#
# **You will see** the answer with its intervals; who holds which files; a hospital that is killed and comes back; weights that agree with NumPy and TFF; the
# learning curve beside the simulation's; what leaves a hospital, byte by byte; what a round costs over the training itself; what secure sums add.
#
# **Time and memory** on 2 cores: a minute when the records are there; profile `quick` trains on phantoms in about 6 minutes, `paper` on real images in about half
# an hour (after notebook 02). A process takes 0.7 GB: below 5 GB for all.
#
# **Data** Brain Tumor Classification (MRI), Bhuvaji et al. 2020, MIT; profile `quick`: phantoms generated here. **Not for clinical use.**

# %%
import pandas as pd
from IPython.display import Markdown, display

from fl_utils import federation_studies as studies
from fl_utils import plotting
from fl_utils.experiments import analysis

# %% tags=["parameters"]
PROFILE = "quick"
METRIC = "balanced_accuracy"

# %% [markdown]
# ## The runs
#
# The federation of notebook 02, once in TFF's simulation and once by real processes: same images, same initial weights, same seeds, the very same function for
# a hospital's training. A call loads the records that are there and trains what is missing; real processes are started and put down again by it.

# %%
SYNTHETIC = PROFILE != "paper"
simulated = studies.comparable(PROFILE)
deployed = studies.deployed_runs(PROFILE)
federated = [run for run in simulated if run.config["method"] == "fedavg"]
print(f"{len(simulated)} simulated runs; {len(deployed)} by real processes: {deployed[0].environment['deployed']}")

# %% [markdown]
# ## Answer

# %%
others = [run for run in simulated if run.config["method"] != "fedavg"]
claims = analysis.claims([*others, *deployed], METRIC)
beside = studies.curve_differences(federated, deployed, METRIC).iloc[0]
for row in claims.itertuples():
    verdict = "holds" if row.holds else "does NOT hold"
    value = f"{row.quantity} **{row.estimate:.3f}** [{row.low:.3f}, {row.high:.3f}] over test patients"
    display(Markdown(f"**Real processes, {row.claim}: {verdict}.** {value}."))
display(Markdown(
    f"**The curve lies on the simulation's:** over {beside.rounds:.0f} rounds and {beside.seeds:.0f} seed(s) the difference is "
    f"{beside.mean_difference:+.4f} in the mean; two runs of one seed are {beside.mean_distance:.3f} apart"
    + (f", two seeds of the simulation {beside.seed_distance:.3f}." if beside.seeds > 1 else ".")
    + ("\n\n*(synthetic phantoms)*" if SYNTHETIC else "")
))

# %% [markdown]
# ## Who has what
#
# In a terminal: `fl-utils federation init --hospitals 4`, then `fl-utils server`, and `fl-utils client 0` … `fl-utils client 3`, each in its own. The training begins
# when the fourth has joined. `init` makes a folder for each member; a hospital is given its own and nothing else.
#
# | | |
# | --- | --- |
# | The server shows a certificate | signed by the federation's own authority; a hospital that was told of another authority, or meets an expired one, does not connect |
# | A hospital shows a key | every call is signed; an unknown key is refused, and so is one hospital in another's place |
# | All listen on loopback | unless an address is given; telemetry is off |
# | A hospital runs its own program | Flower can send program code to clients; here what arrives is numbers, never code |

# %%
config = studies.deployed_configs(PROFILE)[0]
files = studies.members(PROFILE)
display(files[~files["member"].isin([f"hospital_{number}" for number in range(1, 4)])].reset_index(drop=True))

# %% [markdown]
# ## A hospital is killed, and comes back
#
# Four hospitals train; the process of hospital 2 is killed without warning in mid-training. The round waits for it until its time limit, then goes on with
# three. Later the hospital is started again, introduces itself, and its updates count from the next round on. (Shown live while it is measured; kept after. One
# run without interval: that a hospital is missing is not all that the two lines differ by.)

# %%
cut = studies.interruption(PROFILE, watch=studies.live_table())
events = cut.tables["events"]
told = events[events["round"].isna() & events["hospital"].notna()]
display(told[["hospital", "text"]].astype({"hospital": int}).reset_index(drop=True))
display(studies.status_rows(cut.facts["status"]))
print("exit codes:", cut.facts["exit_codes"])

# %%
presence, metrics, rounds = studies.presence(cut), cut.tables["metrics"], cut.facts["rounds"]
line = metrics.query("client == 'all' and split == 'test' and metric == @METRIC").assign(method="deployed")
whole = analysis.curves(federated[:1], METRIC).query("round <= @rounds")
lines = pd.concat([line, whole])[["round", "value", "method"]]
figure = plotting.interrupted_training(
    presence, lines, killed_after=cut.facts["killed_after"], back_after=cut.facts["back_after"], hospital="Hospital 2",
    y_label="Test balanced accuracy",
)
plotting.save_figure(
    figure, "fig08_interruption", data=pd.concat([presence, lines]), profile=PROFILE, synthetic=SYNTHETIC,
    caption="One training by real processes, in which hospital 2 is killed and started again, beside the undisturbed simulation "
    "of the same seed. Below: whose update counted.",
)
display(figure)

# %% [markdown]
# ## The same weights
#
# Three rounds of small trainings, by real processes and otherwise: the largest difference between any two weights. Softmax regression has gradients that NumPy can
# follow without TensorFlow. At most 1e-5 is asked for. Beside what the **same code gives in one process**, the wire adds nothing at all.
#
# With a real network on hundreds of images, TFF and Flower part visibly within three rounds (profile `paper`, last rows). That is not the wire either: a start that
# is moved in the *seventh* digit ends about as far away. ReLU and max-pooling multiply what rounding leaves, and TFF's worker rounds otherwise than TensorFlow
# in Python. So on real images curves can lie on each other in the mean over seeds, not digit by digit.

# %%
agreement = studies.agreement(PROFILE)
readable = agreement.assign(**{name: agreement[name].map("{:.1e}".format) for name in ("distance", "moved")})
for drawn, rows in readable.groupby(readable["dataset"].str.startswith("phantom"), sort=False):
    plotting.save_table(
        rows, "tab08_agreement", profile="phantoms" if drawn and PROFILE == "paper" else PROFILE, synthetic=drawn,
        caption="Largest difference between the weights after three rounds; moved: how far training took them from the start.",
    )
display(readable)
small = agreement[(agreement["dataset"] == "phantom_brain") & agreement["pair"].str.startswith("Flower")]
verdict = "holds" if small["distance"].max() <= studies.TOLERANCE else "does NOT hold"
print(f"small trainings: largest distance {small['distance'].max():.1e}, at most {studies.TOLERANCE:.0e}: {verdict}")

# %% [markdown]
# ## The curve

# %%
curves = pd.concat([analysis.curves(federated, METRIC), analysis.curves(deployed, METRIC).assign(method="deployed")])
curves = curves.assign(panel=analysis.panel(config.dataset))
figure = plotting.learning_curves(curves, y_label="Test balanced accuracy")
plotting.save_figure(
    figure, "fig08_curves", data=curves, profile=PROFILE, synthetic=SYNTHETIC,
    caption="The federation of four hospitals in TFF's simulation and by real processes on Flower, same seeds; band: 95 % "
    "t-interval over seeds. The real processes' points are sums of what the hospitals counted on their own test images.",
)
display(figure)
plotting.save_table(
    beside.to_frame().T, "tab08_curve", profile=PROFILE, synthetic=SYNTHETIC,
    caption="How far the deployed curve lies from the simulated one, beside how far two seeds of the simulation lie apart.",
)
display(beside.to_frame().T)

# %% [markdown]
# ## The two claims of the first project
#
# Within 10 % of the pooled model, and better than each hospital alone; tests and intervals as in notebook 02.

# %%
table = studies.deployed_summary(PROFILE, simulated, deployed, METRIC)
pooled = table.loc[table["method"] == "centralized", "mean"].item()
table = table.assign(panel=analysis.panel(config.dataset), reference=0.9 * pooled)
figure = plotting.intervals(table, x_label="Balanced accuracy on the common test set", reference_label="90 % of centralized", decimals=3)
plotting.save_figure(
    figure, "fig08_headline", data=table, profile=PROFILE, synthetic=SYNTHETIC,
    caption="Four hospitals as real processes, the simulation, the pooled model and each hospital alone, on the same test "
    "images; mean and 95 % t-interval over seeds.",
)
display(figure)

# %%
shown = claims.assign(value=claims.apply(lambda row: f"{row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", axis=1))
shown = shown[["dataset", "claim", "quantity", "value", "p_value", "p_holm", "holds"]]
plotting.save_table(
    shown, "tab08_claims", profile=PROFILE, synthetic=SYNTHETIC,
    caption="Both claims for the real processes. value: bootstrap over test patients; p-values: paired t over seeds, Holm-corrected.",
)
display(shown)

# %% [markdown]
# ## What leaves a hospital
#
# Every byte goes through one place in the hospital's process, where it is counted. Before an update is sent, a line is written to the hospital's own log, with
# the SHA-256 that the server sees as well; a log that cannot be written stops the sending. `fl-utils client 0 --keep-sent folder` keeps a copy of every byte.
#
# What goes: the change of each weight, counts (images by class, patients), scores on the hospital's own images, a heartbeat. What does not: images, file names,
# paths, program errors that might quote them. A test plants a pattern in the images and does not find it in what was sent. That an update itself tells
# of the images is notebook 06.

# %%
sent, model = studies.sent_rows(cut), cut.facts["model_bytes"]
display(sent.head(5))
typical = sent["bytes_a_round"].median()
print(f"a round sends {typical / 1e6:.2f} MB, the model has {model / 1e6:.2f} MB: ratio {typical / model:.3f}, with polls and heartbeats")

# %% [markdown]
# ## What a round costs over the training
#
# The deployed run's own work, all on this machine. A process stays from round to round with its TensorFlow and its traced step; Flower's own client starts a new
# process for each message, which cost 12 s a round on a machine like this, and looks for messages every 3 s. **SecAgg+** adds four stages: keys, shares,
# masked sums, unmasking. Its masks are ChaCha20 streams (Flower's come from a 32-bit seed).

# %%
cost = studies.overhead(PROFILE)
figure = plotting.round_seconds(cost, target_s=2.0)
plotting.save_figure(
    figure, "fig08_overhead", data=cost, profile=PROFILE, synthetic=SYNTHETIC,
    caption="Seconds of a round by how messages travel: the slowest hospital's own work, and what comes on top; median of "
    "rounds, dots: single rounds.",
)
display(figure)
median = cost.groupby("label", sort=False)[["duration_s", "work_s", "over_s", "sent_bytes", "model_bytes"]].median()
median["sent_to_model"] = median["sent_bytes"] / median["model_bytes"]
plotting.save_table(
    median.reset_index().round(3), "tab08_overhead", profile=PROFILE, synthetic=SYNTHETIC,
    caption="Medians over rounds; bytes of one hospital in a round.",
)
display(median.round(3))

# %% [markdown]
# ## What could be wrong
#
# - **One machine.** Four hospitals here share two cores; latency and bandwidth of real lines are not in these numbers. Two machines are joined in a test by
#   network namespaces.
# - **The server is trusted** to count honestly and to send all the same model. In plain rounds it reads each update (notebook 06 shows what it can make of
#   one); with `--secure` it reads their sum only, if it follows the protocol: a server that lies about keys can still break in.
# - **Counts and scores travel in clear**, also with secure sums. Images by class of a small hospital may be telling.
# - **Flower's control interface has no users**: whoever has an account on the server's machine can reach it. It stands on loopback.
# - **A killed hospital costs a time limit**: Flower takes about 20 s to call a silent process gone.
# - **The simulation comes first**: rounds, rate and augmentation were chosen there (notebook 02), not here.
#
# Faults that are tested with real processes (`tests/end_to_end/test_federation*.py`): killed, late, returning and hung hospitals; the server killed and started
# again; unknown key, no key, wrong authority, expired certificate; wrong shapes, numbers that are not finite; a damaged line; a full disk; too few updates.

# %% [markdown]
# ## Takeaways
#
# - The same code in real processes gives the same weights, digit by digit; what differs from TFF is rounding, and as much as rounding does.
# - A federation of processes costs a fraction of a second a round over its training, secure sums a little more, if processes stay.
# - A round goes on without a hospital; below the agreed minimum no new model is published, and the server says so.
#
# **References** McMahan et al. 2017, arXiv:1602.05629 · Beutel et al. 2020, Flower, arXiv:2007.14390 · Bonawitz et al. 2017, doi:10.1145/3133956.3133982 · Bell et
# al. 2020, doi:10.1145/3372297.3417885 (SecAgg+)

# %%
environment = deployed[0].environment
print({**environment["versions"], "flwr": environment["flwr"]}, "commit", environment["git_commit"][:12])
