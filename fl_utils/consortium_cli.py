"""`fl-utils consortium ...`, `owner ...`, `audit-log ...`: hospitals that decide who trains on what, from both sides."""

import contextlib
import json
import re
import shutil
import sys
from pathlib import Path

import typer

FOLDER = typer.Option("consortium", help="The consortium's folder.")
KIT = typer.Option("consortium/people/researcher@university.org", "--as", help="Your own folder, as the project admin gave it to you.")
HOSPITAL = typer.Option(..., help="The hospital's folder, e.g. consortium/hospital_1.")
BY = typer.Option("", help="Who decides; default the owner of this hospital.")
PERSON = typer.Option("", help="Whose plan, where several people handed in the same.")
consortium_app = typer.Typer(no_args_is_help=True, help="A governed consortium: init, up, status, down; cards, plan, train; add-person, revoke.")
owner_app = typer.Typer(no_args_is_help=True, help="What a hospital's data owner decides: publish, grant, requests, show, approve, deny, budget, page.")
audit_app = typer.Typer(no_args_is_help=True, help="A hospital's audit log: verify, show.")
FILE = typer.Argument(help="The log, audit.jsonl in the hospital's folder.", exists=True, dir_okay=False, readable=True)


def register(app: typer.Typer) -> None:
    """Adds these commands to the suite's."""
    app.add_typer(consortium_app, name="consortium")
    app.add_typer(owner_app, name="owner")
    app.add_typer(audit_app, name="audit-log")


# --- the consortium ---


@consortium_app.command("init")
def init(
    folder: Path = FOLDER,
    hospitals: int = typer.Option(4, min=2, help="How many hospitals."),
    dataset: str = typer.Option("phantom_chest", help="Whose images are dealt to the hospitals, see `fl-utils data list`; \"\": none, put them in yourself."),
    partition: str = typer.Option("iid", help="How the images are dealt: iid, natural, quantity."),
    image_size_px: int = typer.Option(32, help="Side to which images are brought, for the cards."),
    num_images: int = typer.Option(0, min=0, help="Of generated data sets; 0: as many as the data set has."),
    address: str = typer.Option("127.0.0.1:8002", help="Where the server listens: loopback unless you name another."),
    host: list[str] = typer.Option([], help="A further name by which members reach the server; may be given several times."),
    days: int = typer.Option(90, min=1, help="How long people's certificates hold."),
) -> None:
    """Make a consortium: server, hospitals and people with their kits; images in the hospitals, nothing published yet."""
    from fl_utils.config import make_config
    from fl_utils.consortia import add_owner_account, fill
    from fl_utils.deployment.nvflare import default_people, hospital_names, new_consortium

    config = make_config(
        dataset=dataset, method="fedavg", partition=partition, num_clients=hospitals, seed=0, profile="quick", model="small_cnn",
        image_size_px=image_size_px, num_images=num_images or None, total_rounds=1, client_learning_rate=0.1, client_batch_size=16,
        quantity_alpha=1.0 if partition == "quantity" else None,
    )
    new_consortium(folder, hospitals=hospitals, address=address, host_names=host, days=days)
    try:
        if dataset:
            fill(folder, config)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # nothing half-made: the same command can be tried again
        raise
    typer.echo(f"{folder}: a server, {hospitals} hospitals, {len(default_people(hospitals))} people.")
    for name in hospital_names(hospitals):
        typer.echo(f"  {folder / name}: the owner's password for the page is in {add_owner_account(folder, name).name}")
    typer.echo(f"Next: fl-utils owner publish --hospital {folder / 'hospital_1'} --dataset {dataset or 'NAME'} (each owner); fl-utils consortium up --folder {folder}")


@consortium_app.command("up")
def up(
    folder: Path = FOLDER, detach: bool = typer.Option(False, "--detach", help="Leave the processes running, and return at once."),
) -> None:
    """Run the server and the hospitals whose folders lie here, until Ctrl-C."""
    import signal
    import time

    from fl_utils.deployment.nvflare import Running

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with Running(folder, owned=not detach) as running:
        typer.echo(f"Running: {', '.join(running.processes)}. fl-utils consortium status --folder {folder}")
        while not detach:
            ended = [name for name, process in running.processes.items() if process.poll() is not None]
            if ended:
                typer.echo(f"{ended[0]} ended: {running.last_words(ended[0])}", err=True)
                raise typer.Exit(1)
            time.sleep(0.5)


@consortium_app.command("run")
def run_member(member: Path = typer.Argument(help="The member's own folder: the server's or a hospital's.", exists=True)) -> None:
    """Run one member's process where its folder lies, until Ctrl-C; for members on machines of their own."""
    from fl_utils.deployment.nvflare import ConsortiumError, serve_member

    if not any((member / "startup" / f"fed_{kind}.json").is_file() for kind in ("server", "client")):
        raise ConsortiumError(f"{member} is neither a server's nor a hospital's folder. It is one below the consortium's, e.g. consortium/hospital_1.")
    serve_member(member)


@consortium_app.command("status")
def status(folder: Path = FOLDER) -> None:
    """Show the members' processes, and what each hospital's owner has published, decided and spent."""
    from rich.console import Console
    from rich.table import Table

    from fl_utils.deployment.nvflare import ConsortiumError, Store, hospitals_in, member_states

    states = member_states(folder)
    if not states:
        raise ConsortiumError(f"There is no consortium in {folder}. Make one with `fl-utils consortium init`, or name its folder with --folder.")
    table = Table(title=f"{folder}: server {states.get('server', 'elsewhere')}")
    for column in ("hospital", "process", "data sets", "requests", "runs", "budget spent", "log"):
        table.add_column(column)
    for name in hospitals_in(folder):
        store = Store(folder / name)
        asked = store.requests()
        counted = ", ".join(f"{sum(one.state == state for one in asked)} {state}" for state in ("waiting", "approved", "denied"))
        spent = ", ".join(f"{one.name} {store.spent(one.name):.2f} of {one.epsilon:g}" for one in store.datasets() if one.epsilon is not None)
        problems = store.problems()
        table.add_row(name, states[name], ", ".join(one.name for one in store.datasets()) or "none", counted, str(len(store.runs())), spent or "none kept",
                      f"{len(problems)} problem(s)" if problems else "whole")
    Console().print(table)


@consortium_app.command("down")
def down(folder: Path = FOLDER) -> None:
    """End the processes that `consortium up` left running."""
    from fl_utils.deployment.nvflare import down as put_down

    typer.echo(f"{put_down(folder)} processes ended.")


@consortium_app.command("add-person")
def add_person(name: str, role: str = typer.Option("lead", help="project_admin, org_admin (data owner), lead (researcher) or member (observer)."),
               days: float = typer.Option(90, min=0.01, help="How long the certificate holds."), folder: Path = FOLDER) -> None:
    """Make a person's kit, or a new one for somebody who was revoked."""
    from fl_utils.deployment.nvflare import add_person as add

    typer.echo(f"{add(folder, name, role, days=days)}: hand this folder to {name}, and nobody else.")


@consortium_app.command("revoke")
def revoke(name: str, folder: Path = FOLDER) -> None:
    """End a person's certificate now."""
    from fl_utils.deployment.nvflare import revoke as end

    end(folder, name)
    typer.echo(f"{name} is revoked at the server and the hospitals here. Send {folder / 'authority' / 'revoked.json'} to hospitals elsewhere.")


# --- the researcher ---


@consortium_app.command("connect")
def connect(kit: Path = KIT) -> None:
    """Sign in and say which hospitals are connected."""
    from fl_utils.deployment.nvflare import Line

    with Line(kit) as line:
        typer.echo(f"{line.name}: connected. Hospitals: {', '.join(line.hospitals()) or 'none'}")


@consortium_app.command("cards")
def cards(into: Path = typer.Argument(help="File for the cards."), kit: Path = KIT,
          mock: Path = typer.Option(None, help="Folder for made-up data sets of the same shape, to develop on.")) -> None:
    """Ask the hospitals for the cards of the data sets that you may see."""
    from fl_utils.deployment.nvflare import ConsortiumError, Line, write_mock

    with Line(kit) as line:
        found = line.cards()
    into.write_text(json.dumps(found, indent=2) + "\n")
    for hospital, own in found.items():
        for card in own:
            if any(name in ("", ".", "..") or Path(name).name != name for name in (hospital, card["name"])):  # it will be a folder's
                raise ConsortiumError(f"{hospital!r} names a data set {card['name']!r}; expected a word. The cards are in {into}.")
            typer.echo(f"{hospital}: {card['name']}, {sum(card['counts']['train'].values())} training images of {card['patients']['train']} patients")
            if mock is not None:
                write_mock(card, mock / hospital / card["name"])


@consortium_app.command("plan")
def plan(
    into: Path = typer.Argument(help="File for the signed plan."),
    cards_file: Path = typer.Option(..., "--cards", help="File of `consortium cards`."),
    dataset: str = typer.Option(..., help="As the cards name it."),
    title: str = typer.Option(..., help="Of the plan."),
    purpose: str = typer.Option(..., help="For whom it is, and why; the owners read it."),
    kit: Path = KIT,
    model: str = typer.Option("small_cnn", help="small_cnn, norm_cnn_group, seed_cnn, residual_gn or softmax_regression."),
    rounds: int = typer.Option(10, min=1), learning_rate: float = typer.Option(0.1), batch_size: int = typer.Option(16, min=1),
    seed: int = typer.Option(0, min=0),
    epsilon: float = typer.Option(0.0, min=0.0, help="Patient-level differential privacy; 0: none."),
    delta: float = typer.Option(1e-3, help="With epsilon."),
    clipping_norm: float = typer.Option(1.0, help="With epsilon: bound of one patient's gradient."),
    encrypted: bool = typer.Option(False, "--encrypted", help="Updates travel encrypted, and the server sees no model."),
    min_hospitals: int = typer.Option(0, min=0, help="Updates that a round needs; 0: more than half."),
) -> None:
    """Write and sign a training plan; show it as the owners will read it."""
    from fl_utils.config import make_config
    from fl_utils.deployment.nvflare import ConsortiumError, plan_of, rendered, sign_plan

    try:
        known = {hospital: card for hospital, own in json.loads(cards_file.read_text()).items() for card in own if card["name"] == dataset}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConsortiumError(f"{cards_file} holds no cards ({error}). Ask for them with `fl-utils consortium cards {cards_file}`.") from None
    try:
        key, certificate = ((kit / "startup" / f"client.{end}").read_bytes() for end in ("key", "crt"))
    except OSError as error:
        raise ConsortiumError(f"{kit} is no person's folder ({error}). Name your own with --as; it is below people/ in the consortium's.") from None
    if len(known) < 2:
        raise ConsortiumError(f"{len(known)} hospitals have a card of {dataset!r} in {cards_file}; expected two or more.")
    private = {"privacy_unit": "patient", "epsilon": epsilon, "delta": delta, "clipping_norm": clipping_norm} if epsilon else {}
    config = make_config(
        dataset=dataset, method="fedavg", partition="natural", num_clients=len(known), seed=seed, profile="quick", model=model,
        image_size_px=next(iter(known.values()))["image_size_px"], total_rounds=rounds, client_learning_rate=learning_rate,
        client_batch_size=batch_size, client_momentum=0.0, augment=False, **private,
    )
    made = plan_of(known, config, title=title, purpose=purpose, encrypted=encrypted, min_hospitals=min_hospitals or None)
    into.write_bytes(sign_plan(made, key, certificate))
    typer.echo(rendered(made))
    typer.echo(f"\nHash {made.hash}\nNext: fl-utils consortium train {into} --into came")


@consortium_app.command("train")
def train(signed: Path = typer.Argument(help="The signed plan.", exists=True), into: Path = typer.Option("came", help="Folder for what comes of it."),
          kit: Path = KIT) -> None:
    """Hand a plan in. Hospitals that have not decided on it keep it as a request; once enough have approved, it is trained."""
    from fl_utils.deployment.nvflare import Line

    with Line(kit) as line:
        answer = line.hand_in(signed.read_bytes(), into, show=lambda status: typer.echo(status.lower().replace("_", " ")))
    for hospital, text in answer.hospitals.items():
        typer.echo(f"{hospital}: {text}")
    if not answer.finished:
        raise typer.Exit(1)
    for event in answer.outcome("events"):
        typer.echo(event["text"] if "hospital" not in event else f"{event['hospital']}: {event['text']}")
    typer.echo(f"{answer.folder}: {', '.join(sorted(path.name for path in answer.folder.iterdir()))}")


# --- the owner ---


@owner_app.command("publish")
def publish(
    hospital: Path = HOSPITAL, dataset: str = typer.Option(..., help="Its folder below data/."),
    min_patients: int = typer.Option(5, min=1, help="Who must stand behind what is sent."),
    max_runs: int = typer.Option(3, min=1, help="Of a plan."),
    epsilon: float = typer.Option(0.0, min=0.0, help="Budget of the patients over all plans and runs; 0: none is kept."),
    delta: float = typer.Option(1e-3, help="With epsilon."),
    output: list[str] = typer.Option(["model_update", "num_examples", "training_loss", "score_counts"], help="What may leave; may be given several times."),
    image_size_px: int = typer.Option(32, help="At which the images are looked at for the card."),
    by: str = BY,
) -> None:
    """Publish a data set's card (counts, no images) with the rules of trainings on it; grant access afterwards."""
    from fl_utils.data import card as catalogue_card
    from fl_utils.deployment.nvflare import data_folder, make_card

    store, known = _store(hospital), catalogue_card(dataset)
    made = make_card(
        data_folder(hospital.parent, hospital.name, dataset), name=dataset, title=known.title, class_names=known.class_names,
        image_size_px=image_size_px, modality=known.modality, source=known.source, synthetic=known.layout == "generated",
    )
    budget = (epsilon, delta) if epsilon else (None, None)
    with _told():
        store.publish(made, min_patients=min_patients, max_runs=max_runs, outputs=output, epsilon=budget[0], delta=budget[1], by=_who(hospital, by))
    typer.echo(json.dumps(made, indent=2))


@owner_app.command("grant")
def grant(hospital: Path = HOSPITAL, dataset: str = typer.Option(...), role: str = typer.Option("lead"), action: str = typer.Option(..., help="see or train."),
          take_back: bool = typer.Option(False, "--take-back", help="End this access."), by: str = BY) -> None:
    """Let a role see a data set's card, or train on the data set; or no longer."""
    store = _store(hospital)
    with _told():
        (store.deny_access if take_back else store.grant)(dataset, role, action, _who(hospital, by))
    for one in store.grants():
        typer.echo(" ".join(one))


@owner_app.command("requests")
def requests(hospital: Path = HOSPITAL) -> None:
    """List the plans that were handed in, newest last."""
    from fl_utils.deployment.nvflare import visible

    for one in _store(hospital).requests():
        title = visible(" ".join(one.plan.title.split()))
        typer.echo(f"{one.hash[:12]}  {one.state:9} {one.received_utc}  {one.person}  {title}" + (f"  ({one.reason})" if one.reason else ""))


@owner_app.command("show")
def show_plan(plan_hash: str, hospital: Path = HOSPITAL, person: str = PERSON) -> None:
    """Show a plan in words, and how it differs from the last one that was approved for its data set."""
    from fl_utils.deployment.nvflare import difference, rendered

    store = _store(hospital)
    made = _asked(store, plan_hash, person).plan
    typer.echo(rendered(made))
    typer.echo("\nDifference to the last approved plan:")
    before = store.last_approved(made.config.dataset)
    typer.echo("\n".join(difference(made, before)) if before else "  there is none yet")


@owner_app.command("approve")
def approve(plan_hash: str, hospital: Path = HOSPITAL, reason: str = typer.Option("", help="For the log."), by: str = BY, person: str = PERSON) -> None:
    """Approve a plan: it may be trained, within this hospital's rules."""
    _decide(plan_hash, hospital, True, reason, by, person)


@owner_app.command("deny")
def deny(plan_hash: str, hospital: Path = HOSPITAL, reason: str = typer.Option(..., help="The researcher is told."), by: str = BY, person: str = PERSON) -> None:
    """Deny a plan, with a reason."""
    _decide(plan_hash, hospital, False, reason, by, person)


@owner_app.command("revoke")
def revoke_here(person: str, hospital: Path = HOSPITAL, reason: str = typer.Option(...), by: str = BY) -> None:
    """No longer let a person in, in this hospital."""
    with _told():
        _store(hospital).revoke(person, reason, _who(hospital, by))


@owner_app.command("budget")
def budget(hospital: Path = HOSPITAL) -> None:
    """Show what each data set's patients have given away."""
    store = _store(hospital)
    for one in store.datasets():
        kept = f"{store.spent(one.name):.3f} of {one.epsilon:g} at delta {one.delta:g}, {len(store.charges(one.name))} charges" if one.epsilon is not None else "no budget is kept"
        typer.echo(f"{one.name}: {kept}")


@owner_app.command("page")
def page(hospital: Path = HOSPITAL, port: int = typer.Option(8080, help="On loopback.")) -> None:
    """Serve the owner's page on loopback until Ctrl-C."""
    from fl_utils.deployment.nvflare import serve_page

    serve_page(hospital, port, typer.echo)


def _decide(plan_hash: str, hospital: Path, approved: bool, reason: str, by: str, person: str) -> None:
    store = _store(hospital)
    asked = _asked(store, plan_hash, person)
    with _told():
        store.decide(asked.hash, approved, reason, _who(hospital, by), asked.person)
    typer.echo(f"{asked.hash[:12]} of {asked.person} is {'approved' if approved else 'denied'} in {hospital.resolve().name}.")


def _asked(store, plan_hash: str, person: str):
    from fl_utils.deployment.nvflare import ConsortiumError

    if len(plan_hash) < 6:
        raise ConsortiumError(f"The plan is named {plan_hash!r}; expected at least the first 6 signs of its hash.")
    found = [one for one in store.requests() if one.hash.startswith(plan_hash) and person in ("", one.person)]
    if len(found) != 1:
        whose = f" (of {', '.join(one.person for one in found)}; name one with --person)" if len({one.hash for one in found}) == 1 else ""
        raise ConsortiumError(f"{len(found)} requests begin with {plan_hash!r}{whose}; `fl-utils owner requests --hospital {store.folder}` lists them.")
    return found[0]


def _store(hospital: Path):
    """What the owner of a hospital has decided; no new one is begun where no hospital is."""
    from fl_utils.deployment.nvflare import ConsortiumError, Store

    if not (hospital / "startup" / "fed_client.json").is_file():
        raise ConsortiumError(f"There is no hospital in {hospital}. Name its folder with --hospital, e.g. consortium/hospital_1.")
    return Store(hospital)


@contextlib.contextmanager
def _told():
    """What the store will not have is told in its own words."""
    from fl_utils.deployment.nvflare import ConsortiumError

    try:
        yield
    except ValueError as error:
        raise ConsortiumError(str(error)) from None


def _who(hospital: Path, by: str) -> str:
    from fl_utils.consortia import owner_of

    return by or owner_of(hospital.resolve().name)


# --- the log ---


@audit_app.command("verify")
def verify(
    file: Path = FILE,
    head: list[str] = typer.Option([], help="NUMBER:HASH of an entry, as somebody noted it earlier; may be given several times."),
) -> None:
    """Check that no entry was changed, removed, moved or inserted; exit code 1, and a line a problem, if one was."""
    from fl_utils.deployment.nvflare import read_log, verify_log

    problems, entries = verify_log(file, [_head(text) for text in head]), read_log(file)
    for problem in problems:
        typer.echo(problem)
    last = f", head {entries[-1]['number']}:{entries[-1]['hash']}" if entries else ""
    typer.echo(f"{len(entries)} entries{last}")
    if problems:
        typer.echo(f"{len(problems)} problem(s).")
        raise typer.Exit(1)
    typer.echo(f"The log is whole, and holds the {len(head)} noted head(s)." if head else
               "The log is whole, as far as it and its anchor tell. Note the head elsewhere, and give it as --head the next time.")


@audit_app.command("show")
def show(
    file: Path = FILE,
    last: int = typer.Option(20, min=0, help="How many entries, from the end; 0: all."),
    event: str = typer.Option("", help="Only entries of this event."),
) -> None:
    """Show entries, a line each. It does not check them: see verify."""
    from fl_utils.deployment.nvflare import read_log

    entries = [entry for entry in read_log(file) if event in ("", entry["event"])]
    for entry in entries[-last:] if last else entries:
        own = ("number", "time_utc", "event", "previous", "hash", "change")
        facts = {name: value for name, value in entry.items() if name not in own}
        said = ", ".join(f"{name} {value if isinstance(value, (int, float)) else json.dumps(value)}" for name, value in facts.items())
        typer.echo(f"{entry['number']:6} {entry['time_utc']} {entry['event']}" + (f": {said}" if said else ""))


def _head(text: str) -> tuple[int, str]:
    found = re.fullmatch(r"(\d+):([0-9a-fA-F]{64})", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r}; expected NUMBER:HASH, the hash of 64 hex digits.", param_hint="--head")
    return int(found[1]), found[2].lower()
