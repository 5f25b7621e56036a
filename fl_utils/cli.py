"""The command line: `fl-utils --help`. TensorFlow is loaded only by what trains."""

import json
import sys

import typer
import typer.core

from fl_utils import __version__


class _Commands(typer.core.TyperGroup):
    """Ctrl-C ends with a sentence; Typer by itself ends without a word."""

    def invoke(self, ctx: typer.Context):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("Stopped. What was finished is kept; the same command goes on from there.", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Federated learning on medical images: the suite's command line.",
)
data_app = typer.Typer(no_args_is_help=True, help="The data sets: list, audit.")
app.add_typer(data_app, name="data")

PROFILE = typer.Option("quick", help="smoke, quick (phantoms) or paper (real data).")


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        typer.echo(f"fl-utils {__version__}")
        raise typer.Exit


@app.command()
def reproduce(
    profile: str = PROFILE,
    only: list[str] = typer.Option([], help="Notebook number, e.g. 02; may be given several times."),
) -> None:
    """Run the notebooks in order, train what is missing, and leave figures, tables and executed notebooks."""
    from fl_utils.report import run_notebooks

    run_notebooks(profile, only=only)


@app.command()
def figures() -> None:
    """Redraw every published figure and table from the committed records, without training."""
    from fl_utils.report import run_notebooks

    run_notebooks("paper", train=False)


@app.command()
def sweep(
    profile: str = PROFILE,
    dataset: str = typer.Option("", help="One data set of the profile; default all."),
) -> None:
    """Train the runs of notebooks 01 and 02 that are missing; goes on where it was stopped."""
    from fl_utils.experiments import plans

    for name in [dataset] if dataset else plans.datasets_of(profile):
        configs = plans.configs_01(profile, name) + plans.configs_02(profile, name)
        plans.sweep(configs)
        typer.echo(f"{name}: {len(configs)} runs are there.")


@app.command()
def doctor() -> None:
    """Say what this machine has, and what is wrong with it."""
    from fl_utils import doctor as examination

    raise typer.Exit(examination.run())


@data_app.command("list")
def data_list() -> None:
    """The data sets of the catalogue, and which are at hand."""
    from fl_utils import paths
    from fl_utils.data.catalogue import CARDS

    for card in CARDS.values():
        where = "generated" if card.synthetic else "found" if paths.dataset_root(card.folder) else "missing"
        typer.echo(f"{card.name:15} {where:10} {card.title}")


@data_app.command("audit")
def data_audit(
    name: str,
    as_json: bool = typer.Option(False, "--json", help="Print the counts as JSON."),
    image_size_px: int = typer.Option(48, help="Size at which the images are decoded."),
) -> None:
    """Count copies and where they lie; run it before training."""
    from fl_utils.data.audit import audit
    from fl_utils.data.load import load_dataset

    report = audit(load_dataset(name, image_size_px=image_size_px, progress=sys.stderr.isatty()))
    if as_json:
        typer.echo(json.dumps(report.counts(), indent=2))
        return
    for field, count in report.counts().items():
        typer.echo(f"{field:24} {count:6}")
    typer.echo(report.table.to_string(index=False))


def main() -> None:
    """Runs a command; an error that has a clear sentence is told as one, with exit code 1."""
    try:
        app()
    except Exception as error:
        # The package's own errors are written for the user; anything else is a defect and keeps its traceback.
        if not type(error).__module__.startswith("fl_utils."):
            raise
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
