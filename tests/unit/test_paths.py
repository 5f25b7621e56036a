"""Where things lie, and the variables that move them."""

from pathlib import Path

import pytest

from fl_utils import paths

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = {"FL_UTILS_DATA": "data", "FL_UTILS_RESULTS": "results", "FL_UTILS_CACHE": ".cache"}


def folders():
    return {
        "FL_UTILS_DATA": paths.data_root(), "FL_UTILS_RESULTS": paths.results_root("paper"),
        "FL_UTILS_CACHE": paths.cache_root(),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def test_defaults_lie_in_the_project():
    assert paths.project_root() == ROOT
    assert folders() == {variable: ROOT / name for variable, name in VARIABLES.items()}


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_moves_its_folder_and_no_other(monkeypatch, tmp_path, variable):
    monkeypatch.setenv(variable, f"  {tmp_path}  ")
    assert folders() == {name: tmp_path if name == variable else ROOT / VARIABLES[name] for name in VARIABLES}


@pytest.mark.parametrize("empty", ["", "   "])
def test_an_empty_variable_counts_as_unset(monkeypatch, empty):
    monkeypatch.setenv("FL_UTILS_DATA", empty)
    assert paths.data_root() == ROOT / "data"


def test_relative_paths_are_relative_to_the_project_not_to_the_caller(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FL_UTILS_DATA", "../elsewhere")
    assert paths.data_root() == ROOT.parent / "elsewhere"


def test_the_home_folder_may_be_written_short(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FL_UTILS_CACHE", "~/cache")
    assert paths.cache_root() == tmp_path / "cache"
    assert paths.checkpoints_root() == tmp_path / "cache" / "checkpoints"


def test_only_the_published_profile_lies_at_the_top(monkeypatch, tmp_path):
    monkeypatch.setenv("FL_UTILS_RESULTS", str(tmp_path))
    assert paths.results_root("paper") == tmp_path and paths.runs_root("paper") == tmp_path / "runs"
    assert paths.results_root("quick") == tmp_path / "quick" and paths.runs_root("quick") == tmp_path / "quick" / "runs"


def test_a_data_set_is_found_or_none(monkeypatch, tmp_path):
    monkeypatch.setenv("FL_UTILS_DATA", str(tmp_path))
    (tmp_path / "brain_mri").mkdir()
    (tmp_path / "chest_xray").write_text("a file is no data set")
    assert paths.dataset_root("brain_mri") == tmp_path / "brain_mri"
    assert paths.dataset_root("chest_xray") is None and paths.dataset_root("other") is None
