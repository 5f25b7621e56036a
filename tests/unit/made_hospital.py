"""A hospital whose owner has a page: accounts, a data set with a budget, plans that wait and that were decided, runs and a log."""

import json

from tests.unit import made_governance as made

PASSWORD = "a long enough password"
OWNER, OBSERVER, ADMIN, RESEARCHER = "owner@hospital1.org", "observer@authority.org", "admin@consortium.org", "lead@university.org"
ACCOUNTS = {OWNER: "org_admin", OBSERVER: "member", ADMIN: "project_admin", RESEARCHER: "lead"}
HOSPITAL = "hospital_1"
CARD = made.CARD | {
    "title": "Drawn brains, with and without tumour", "source": "Drawn by the suite's own program.",
    "counts": {"train": {"none": 30, "tumour": 20}, "validation": {"none": 5, "tumour": 4}, "test": {"none": 5, "tumour": 4}},
}
#: What a plan's author could write to harm who reads it.
HOSTILE = "<script>alert(1)</script> \" onmouseover='x' & Rounds: 1"


def make_folder(folder, accounts=ACCOUNTS, epsilon=4.0):
    """A hospital's folder with a published data set and accounts; its store."""
    startup = folder / "startup"
    startup.mkdir(parents=True)
    (startup / "rootCA.pem").write_bytes(made.authority())
    (startup / "fed_client.json").write_text(json.dumps({"client": {"fqsn": HOSPITAL}}))
    store = made.open_store(folder, epsilon, card=CARD, min_patients=20)
    for name, role in accounts.items():
        store.add_account(name, PASSWORD, role, 30)
    return store


def ask(store, plan=None, name=made.RESEARCHER, role="lead"):
    """Hands a plan in; the request."""
    return store.file_request(made.signed_by(plan or made.plan_of(private=True), name, role))


def train(store, asked, run_id, rounds, state="finished", size=41_000):
    """What a training of an approved plan leaves in store and log."""
    plan = asked.plan
    store.start_run(run_id, asked.hash, asked.person)
    for one in range(rounds):
        store.charge(plan.config.dataset, run_id, one, plan.noise.noise_multiplier, plan.round_terms())
        store.log.write("sent", run=run_id, plan=asked.hash, bytes=size, sha256="0" * 64)
    if state == "finished":
        store.log.write("sent", run=run_id, plan=asked.hash, bytes=100, sha256="1" * 64)  # the scores of the last model
    if state:
        store.end_run(run_id, state)


def fill(store):
    """A working day: plans decided and waiting, one trained, a person no longer let in."""
    first = ask(store, made.plan_of("Tumours in drawn brains", private=True))
    store.decide(first.hash, True, "As agreed on in March.", OWNER)
    train(store, first, "3f0a7c52-1111-4d7e-9c0a-000000000001", 10)
    denied = ask(store, made.plan_of("Tumours, images sent along"))
    store.decide(denied.hash, False, "Without differential privacy nothing is trained on these patients.", OWNER)
    longer = made.plan_of("Tumours in drawn brains, longer", private=True, total_rounds=15, client_learning_rate=0.02)
    hostile = made.plan_of(HOSTILE, private=True, outputs=("model_update", "num_examples", "training_loss"))
    asked = [ask(store, longer), ask(store, hostile)]
    store.revoke(made.OTHER, "Left the university.", OWNER)
    return [first, denied, *asked]
