"""The command line: `fl-utils --help`. TensorFlow is loaded only by what trains."""

import json
import os
import sys

import typer
import typer.core

from fl_utils import __version__, consortium_cli, federation_cli


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
data_app = typer.Typer(no_args_is_help=True, help="The data sets: list, fetch, verify, audit, show.")
app.add_typer(data_app, name="data")
federation_cli.register(app)
consortium_cli.register(app)

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
    workers: int = typer.Option(0, min=0, help="Processes that train at the same time; 0: one a core, at most 4."),
) -> None:
    """Run the notebooks in order, train what is missing, and leave figures, tables and executed notebooks."""
    from fl_utils.report import run_notebooks

    # More than four processes of 2 GB each ask for a larger machine than a laptop.
    run_notebooks(profile, only=only, workers=workers or min(4, len(os.sched_getaffinity(0))))


@app.command()
def figures() -> None:
    """Redraw every published figure and table from the committed records, without training."""
    from fl_utils.report import run_notebooks

    run_notebooks("paper", train=False)


@app.command()
def sweep(
    profile: str = PROFILE,
    dataset: str = typer.Option("", help="One data set of the profile; default all."),
    only: list[str] = typer.Option([], help="Notebook number, e.g. 02; may be given several times."),
    workers: int = typer.Option(1, min=1, help="Processes that train at the same time; each has its own cores."),
    ray_address: str = typer.Option("", help="host:port of a Ray cluster that does the runs; `ray start --head` prints it."),
) -> None:
    """Train the runs of the notebooks that are missing; goes on where it was stopped."""
    from fl_utils import report

    report.train_what_is_missing(
        profile, report.sources(only), dataset=dataset or None, workers=workers, ray_address=ray_address or None
    )


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
        if card.layout == "xray_sites":
            where = "found" if all(paths.dataset_root(part) for part in ("chest_xray", "nih")) else "missing"
        typer.echo(f"{card.name:15} {card.task:13} {where:10} {card.title}")
    typer.echo(f"\nLooked for in {paths.data_root()}. `fl-utils data fetch NAME` gets one that is missing.")


@data_app.command("fetch")
def data_fetch(
    name: str, force: bool = typer.Option(False, "--force", help="Fetch it again, though it is there.")
) -> None:
    """Download a data set, check it and unpack it; goes on where it was cut."""
    from fl_utils.data.fetch import fetch

    folder = fetch(name, progress=sys.stderr.isatty(), force=force)
    typer.echo(f"{name} is in {folder}. Next: fl-utils data audit {name}")


@data_app.command("verify")
def data_verify(name: str) -> None:
    """Read every file of a data set; say what is damaged and what differs from the published counts."""
    from fl_utils.data.verify import verify

    report = verify(name, progress=sys.stderr.isatty())
    typer.echo(f"{name}: {report.files} files, {report.size_bytes / 1e6:.1f} MB in {report.folder}")
    for note in report.notes:
        typer.echo(f"note: {note}")
    for path, reason in report.problems:
        typer.echo(f"damaged: {path}: {reason}")
    typer.echo("All files are whole." if report.ok else f"{len(report.problems)} problem(s).")
    if not report.ok:
        raise typer.Exit(1)


SIZE = typer.Option(48, help="Size at which the images are decoded.")


@data_app.command("audit")
def data_audit(
    name: str,
    as_json: bool = typer.Option(False, "--json", help="Print the counts as JSON."),
    image_size_px: int = SIZE,
) -> None:
    """Count copies, near-duplicates and patients, and where they lie; run it before training."""
    from fl_utils.data.audit import audit

    report = audit(_loaded(name, image_size_px))
    if as_json:
        typer.echo(json.dumps(report.counts(), indent=2))
        return
    for field, count in report.counts().items():
        typer.echo(f"{field:28} {count:6}")
    typer.echo(report.table.to_string(index=False))
    for title, groups in (("Copies", report.examples), ("Near-duplicates", report.near_examples)):
        for group in groups[:3]:
            typer.echo(f"{title}: " + "; ".join(group[:4]) + (f"; and {len(group) - 4} more" if len(group) > 4 else ""))


@data_app.command("show")
def data_show(
    name: str,
    out: str = typer.Option("", help="Where the picture goes; default: the cache, as real images belong nowhere else."),
    image_size_px: int = typer.Option(96, help="Size at which the images are decoded."),
    per_row: int = typer.Option(8, min=1, help="Images of each class and hospital."),
) -> None:
    """Draw a contact sheet: images of every class of every natural hospital, lesions outlined where known."""
    from pathlib import Path

    from fl_utils import paths, plotting
    from fl_utils.data.overview import sheet_rows

    dataset = _loaded(name, image_size_px)
    index, rows, titles = sheet_rows(dataset)
    # Only what is drawn: the images of a large dataset stay on disk.
    drawn = [place for row in range(len(titles)) for place in (rows == row).nonzero()[0][:per_row]]
    index, rows = index[drawn], rows[drawn]
    masks = None if dataset.masks is None else dataset.masks[index]
    outline = "Outline of what is to be segmented" if dataset.class_names == ("case",) else "Outline of the lesion"
    figure = plotting.image_gallery(dataset.images[index], rows, titles, masks, per_class=per_row, outline=outline)
    path = Path(out) if out else paths.cache_root() / "sheets" / f"{name}.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, format=path.suffix[1:] or "png")
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} could not be written: {error}", param_hint="--out") from None
    typer.echo(f"{len(dataset)} images, {len(titles)} rows: {path}")


@data_app.command("page")
def data_page() -> None:
    """For maintainers: write data/README.md anew from the cards."""
    from fl_utils.data.cards_page import write_page

    typer.echo(f"Written: {write_page()}")


def _loaded(name: str, image_size_px: int):
    from fl_utils.data.catalogue import card
    from fl_utils.data.load import load_dataset
    from fl_utils.data.overview import volume_overview

    progress = sys.stderr.isatty()
    if card(name).task == "segmentation":
        dataset = volume_overview(name, image_size_px=image_size_px, progress=progress)
        for subject, reason in dataset.excluded:  # load_dataset warns by itself
            typer.echo(f"left out: {subject}: {reason}", err=True)
        return dataset
    return load_dataset(name, image_size_px=image_size_px, progress=progress)


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
