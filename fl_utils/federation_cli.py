"""`fl-utils server`, `fl-utils client`, `fl-utils federation ...`: the federation as real processes."""

import signal
import sys
import time
from pathlib import Path

import typer

FOLDER = typer.Option("federation", help="The federation's folder.")
federation_app = typer.Typer(no_args_is_help=True, help="A federation of real processes: init, up, status, down.")


def register(app: typer.Typer) -> None:
    """Adds these commands to the suite's."""
    app.command()(server)
    app.command()(client)
    app.add_typer(federation_app, name="federation")


def server(folder: Path = FOLDER) -> None:
    """Serve a training to its hospitals: it begins when all have joined, and goes on where an earlier server ended."""
    _prepare_process()
    from fl_utils.deployment.flower import run_server

    run_server(folder, say=typer.echo)


def client(
    hospital: int = typer.Argument(help="Which hospital this is, from 0."),
    folder: Path = FOLDER,
    data: Path = typer.Option(None, help="The hospital's images; default `data` in its folder."),
    keep_sent: Path = typer.Option(None, help="Folder for a copy of every byte that is sent."),
) -> None:
    """Take part as one hospital: train on its own images until the server says that it is over."""
    _prepare_process()
    from fl_utils.deployment.flower import run_client

    run_client(folder, hospital, data=data, keep_sent=keep_sent, say=typer.echo)


@federation_app.command("init")
def init(
    folder: Path = FOLDER,
    hospitals: int = typer.Option(4, min=2, help="How many hospitals."),
    dataset: str = typer.Option("phantom_brain", help="Whose images are shared out, see `fl-utils data list`."),
    rounds: int = typer.Option(20, min=1, help="Rounds of the training."),
    method: str = typer.Option("fedavg", help="fedavg, fedprox, fedavgm, fedadam, fedyogi or fedadagrad."),
    proximal_strength: float = typer.Option(0.0, help="Of fedprox: mu."),
    server_learning_rate: float = typer.Option(1.0, help="Of the server's step."),
    server_momentum: float = typer.Option(0.0, help="Of fedavgm."),
    model: str = typer.Option("seed_cnn", help="seed_cnn, residual_gn, small_cnn or norm_cnn_group."),
    learning_rate: float = typer.Option(0.015, help="Of the hospitals."),
    image_size_px: int = typer.Option(48, help="Side to which images are brought."),
    num_images: int = typer.Option(0, min=0, help="Of generated data sets; 0: as many as the data set has."),
    partition: str = typer.Option("iid", help="How the images are shared out: iid, natural, quantity, feature."),
    seed: int = typer.Option(0, min=0, help="Root seed."),
    address: str = typer.Option("127.0.0.1:9092", help="Where the server listens: loopback unless you name another."),
    host: list[str] = typer.Option([], help="A further name by which hospitals reach the server; may be given several times."),
    join_timeout_s: float = typer.Option(0.0, min=0.0, help="Begin then with those who are there; 0: wait for all."),
    min_hospitals: int = typer.Option(0, min=0, help="Updates that a round needs; 0: more than half."),
    round_timeout_s: float = typer.Option(120.0, help="How long a hospital may take for a round."),
    secure: bool = typer.Option(False, "--secure", help="Add updates by SecAgg+: the server sees their sum only."),
    aggregator: str = typer.Option("", help="A robust rule: coordinate_median, trimmed_mean, krum, multi_krum or geometric_median."),
    assumed_attackers: int = typer.Option(-1, help="Bad hospitals that trimmed_mean, krum and multi_krum reckon with."),
    epsilon: float = typer.Option(0.0, min=0.0, help="Patient-level differential privacy; 0: none."),
    delta: float = typer.Option(1e-3, help="With epsilon."),
    clipping_norm: float = typer.Option(1.0, help="With epsilon: bound of one patient's gradient."),
) -> None:
    """Make a federation: authority, certificate, a key and a folder of images for each hospital."""
    from fl_utils.config import make_config
    from fl_utils.federations import federation_of, set_up

    config = make_config(
        dataset=dataset, method=method, partition=partition, num_clients=hospitals, seed=seed, profile="quick",
        image_size_px=image_size_px, num_images=num_images or None, model=model, total_rounds=rounds,
        client_learning_rate=learning_rate, client_batch_size=16, proximal_strength=proximal_strength,
        server_learning_rate=server_learning_rate, server_momentum=server_momentum, aggregator=aggregator or None,
        assumed_attackers=None if assumed_attackers < 0 else assumed_attackers,
        **({"privacy_unit": "patient", "epsilon": epsilon, "delta": delta, "clipping_norm": clipping_norm} if epsilon else {}),
    )
    federation = federation_of(
        config, min_hospitals=min_hospitals or None, address=address, round_timeout_s=round_timeout_s,
        join_timeout_s=join_timeout_s or None,
        secure={"threshold": hospitals // 2 + 1, "stage_timeout_s": round_timeout_s} if secure else None,
    )
    set_up(folder, federation, hosts=host)
    typer.echo(f"{folder}: {hospitals} hospitals, {dataset}. Now, each in a terminal of its own:")
    typer.echo(f"  fl-utils server --folder {folder}")
    for number in range(hospitals):
        typer.echo(f"  fl-utils client {number} --folder {folder}")
    typer.echo(f"or all at once: fl-utils federation up --folder {folder}")


@federation_app.command("up")
def up(
    folder: Path = FOLDER,
    hospitals: int = typer.Option(4, min=2, help="With a folder that is not there yet: how many hospitals it is made for."),
    detach: bool = typer.Option(False, "--detach", help="Leave the processes running, and return at once."),
) -> None:
    """Run server and hospitals on this machine and show how they get on; makes a federation on phantoms if there is none."""
    from fl_utils.deployment.flower import Local

    if not folder.exists():
        _new_on_phantoms(folder, hospitals)
    _end_on_sigterm()
    if detach:
        Local(folder, owned=False).__enter__()
        typer.echo(f"Running. fl-utils federation status --folder {folder}; fl-utils federation down --folder {folder}")
        return
    from rich.live import Live

    with Local(folder) as local, Live(refresh_per_second=4) as live:
        status = local.wait(show=lambda status: live.update(table_of(status)))
        live.update(table_of(status))
    typer.echo(status["last_word"])


@federation_app.command("status")
def status(
    folder: Path = FOLDER, watch: bool = typer.Option(False, "--watch", help="Go on showing it until the training is over.")
) -> None:
    """Show who is in, the round, the score, what came, and the last word of each."""
    from rich.console import Console
    from rich.live import Live

    from fl_utils.deployment.flower import FederationError, read_status

    def read() -> dict:
        found = read_status(folder / "server")
        if found is None:
            raise FederationError(f"No server has worked in {folder} yet. Start one: `fl-utils server --folder {folder}`.")
        return found

    if not watch:
        Console().print(table_of(read()))
        return
    with Live(refresh_per_second=4) as live:
        while True:
            found = read()
            live.update(table_of(found))
            if found["state"] in ("finished", "failed", "stopped", "gone"):
                return
            time.sleep(0.5)


@federation_app.command("down")
def down(folder: Path = FOLDER) -> None:
    """End the processes that `federation up` left running."""
    from fl_utils.deployment.flower import put_down

    typer.echo(f"{put_down(folder)} processes ended.")


def table_of(status: dict):
    """The status as a table (`rich.table.Table`)."""
    from rich.table import Table

    score = status.get("validation")
    known = f", validation balanced accuracy {score['balanced_accuracy']:.3f} after round {score['round']}" if score else ""
    table = Table(title=f"{status['state']}: round {status['round']} of {status['total_rounds']}{known}", caption=status["last_word"])
    for column in ("hospital", "state", "round", "received", "last word"):
        table.add_column(column, justify="right" if column in ("round", "received") else "left")
    for number, one in status["hospitals"].items():
        table.add_row(number, one["state"], str(one["round"]), f"{one['bytes'] / 1e6:.1f} MB", one["last_word"])
    return table


def _new_on_phantoms(folder: Path, hospitals: int) -> None:
    from fl_utils.config import make_config
    from fl_utils.federations import federation_of, set_up

    config = make_config(
        dataset="phantom_brain", method="fedavg", partition="iid", num_clients=hospitals, seed=0, profile="quick", model="small_cnn",
        image_size_px=32, num_images=100 * hospitals, total_rounds=10, client_learning_rate=0.05, client_batch_size=16,
    )
    set_up(folder, federation_of(config))
    typer.echo(f"{folder} was made: {hospitals} hospitals on phantoms (drawn, not real).")


def _prepare_process() -> None:
    """Of a server or hospital."""
    sys.modules.setdefault("ray", None)  # Flower would load it, for simulations: two seconds
    _end_on_sigterm()


def _end_on_sigterm() -> None:
    """So that what must be put down is put down."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
