"""`fl-utils audit-log ...`: what a hospital's audit log says, and whether it is whole."""

import json
import re
from pathlib import Path

import typer

audit_app = typer.Typer(no_args_is_help=True, help="A hospital's audit log: verify, show.")
FILE = typer.Argument(help="The log, audit.jsonl in the hospital's folder.", exists=True, dir_okay=False, readable=True)


def register(app: typer.Typer) -> None:
    """Adds these commands to the suite's."""
    app.add_typer(audit_app, name="audit-log")


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
