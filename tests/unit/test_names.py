"""Every name that is used is defined: what no test happens to run is found as well."""

import ast
from pathlib import Path

import pytest
from pyflakes import checker
from pyflakes import messages as found

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("fl_utils", "tests", "benchmarks", "notebooks/src") for path in (ROOT / folder).rglob("*.py"))
WRONG = (found.UndefinedName, found.UndefinedLocal, found.UndefinedExport, found.RedefinedWhileUnused, found.DuplicateArgument)


def wrong_names(text: str, name: str) -> list[str]:
    return [str(one) for one in checker.Checker(ast.parse(text), name).messages if isinstance(one, WRONG)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_is_used_that_is_not_defined(path):
    assert wrong_names(path.read_text(), path.name) == []


def test_a_name_that_was_not_imported_is_found():
    assert "augmentation" in wrong_names("def settings(config):\n    return augmentation(config)\n", "made.py")[0]
