"""Every notebook runs in profile smoke, and keeps the rules of a notebook (DESIGN section 4)."""

import ast
import json
import re
from pathlib import Path

import jupytext
import nbformat
import pytest

from fl_utils import paths, report

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SOURCES = sorted((NOTEBOOKS / "src").glob("*.py"))
MACHINE_PATHS = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|mnt|var/folders|private|opt)/\w")
every_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def code_cells(source: Path):
    return [cell for cell in jupytext.read(source).cells if cell.cell_type == "code"]


def lines(cell) -> list[str]:
    return cell.source.strip().splitlines()


def parsed(cell) -> ast.Module:
    return ast.parse(cell.source)


def test_there_are_notebooks_and_their_numbers_count_up():
    assert [path.name[:2] for path in SOURCES] == [f"{number:02d}" for number in range(len(SOURCES))] != []


@every_notebook
def test_opens_with_a_question(source):
    cells = jupytext.read(source).cells
    title = cells[0].source.splitlines()[0]
    assert cells[0].cell_type == "markdown" and re.fullmatch(rf"# {source.name[:2]} · .+\?", title), title
    text = cells[0].source.lower()
    assert "time" in text and "memory" in text and "data" in text and "not for clinical use" in text


@every_notebook
def test_length(source):
    assert 18 <= len(jupytext.read(source).cells) <= 36
    assert [cell.source for cell in code_cells(source) if len(lines(cell)) > 15] == []


@every_notebook
def test_calls_and_does_not_define(source):
    for cell in code_cells(source):
        for node in ast.walk(parsed(cell)):
            assert not isinstance(node, ast.ClassDef), cell.source
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno + 1 <= 5, f"{node.name} is longer than 5 lines"


@every_notebook
def test_all_imports_in_one_cell(source):
    importing = [
        cell.source for cell in code_cells(source)
        if any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(parsed(cell)))
    ]
    assert len(importing) == 1


@every_notebook
def test_parameters_are_literals(source):
    """Papermill puts its values after this cell: what is computed here would not follow them."""
    (cell,) = [cell for cell in code_cells(source) if "parameters" in cell.metadata.get("tags", [])]
    statements = parsed(cell).body
    assert all(isinstance(statement, ast.Assign) for statement in statements)
    for statement in statements:
        ast.literal_eval(statement.value)
    assert "PROFILE" in {statement.targets[0].id for statement in statements}


@every_notebook
def test_source_has_no_machine_path(source):
    assert not MACHINE_PATHS.search(source.read_text())


def check_executed(path: Path, source: Path):
    """The rules for what is committed, kept by every executed notebook."""
    text = path.read_text()
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(text) < 1_000_000
    for place in (str(paths.project_root()), str(Path.home())):
        assert place not in text
    assert "widgets" not in notebook.metadata
    counts = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            assert not MACHINE_PATHS.search(cell.source)
            continue
        counts.append(cell.execution_count)
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", cell.source
            data = output.get("data", {})
            assert not any("widget" in kind or "javascript" in kind for kind in data), cell.source
            shown = output.get("text", "") + "".join(str(data.get(kind, "")) for kind in ("text/plain", "text/html", "text/markdown"))
            assert not MACHINE_PATHS.search(shown), MACHINE_PATHS.search(shown)
            assert "Warning" not in shown, shown
    assert counts == list(range(1, len(counts) + 1))
    own = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    assert [(cell.cell_type, cell.source) for cell in own] == [(cell.cell_type, cell.source) for cell in jupytext.read(source).cells]


@every_notebook
def test_committed_notebook(source):
    path = NOTEBOOKS / f"{source.stem}.ipynb"
    if not path.is_file():
        pytest.skip(f"notebooks/{path.name} is not there yet")
    check_executed(path, source)


def test_no_committed_notebook_without_source():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} <= {source.stem for source in SOURCES}


@pytest.mark.timeout(1800)  # against hanging; notebook 08 starts six federations, and another worker may be busy
@every_notebook
def test_runs_in_smoke(source, folders):
    """In order: a later notebook finds the records of an earlier one."""
    path = report.run_notebook(source, "smoke")
    assert path == folders / "results" / "smoke" / "notebooks" / f"{source.stem}.ipynb"
    check_executed(path, source)
    injected = [cell for cell in nbformat.read(path, as_version=4).cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert len(injected) == 1 and 'PROFILE = "smoke"' in injected[0].source
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".") or entry.suffix != ".ipynb"] == []
    figures = list((folders / "results" / "smoke" / "figures").glob(f"fig{source.name[:2]}_*.png"))
    assert figures and all(figure.with_suffix(".csv").is_file() for figure in figures)


def test_failing_notebook_names_the_cell_and_keeps_what_there_is(folders, tmp_path):
    source = tmp_path / "99_broken.py"
    source.write_text('# %% tags=["parameters"]\nPROFILE = "quick"\n\n# %%\nprint("so far")\n\n# %%\n1 / 0\n')
    with pytest.raises(report.NotebookError, match="99_broken failed in cell 4: ZeroDivisionError"):
        report.run_notebook(source, "smoke")
    folder = folders / "results" / "smoke" / "notebooks"
    assert not (folder / "99_broken.ipynb").exists() and not [entry for entry in folder.iterdir() if entry.name.startswith(".")]
    assert "so far" in json.dumps(nbformat.read(folder / "99_broken.failed.ipynb", as_version=4))


def test_unknown_notebook_number():
    with pytest.raises(report.NotebookError, match="No notebook 77 in notebooks/src; there are 00, 01"):
        report.sources(["77"])
