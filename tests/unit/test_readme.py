"""README.md says what the published tables say."""

import pytest

from fl_utils import paths, readme


def test_the_part_between_the_marks_is_replaced_and_nothing_else():
    text = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"
    updated = readme.update_readme(text, "| new |")
    assert updated == f"before\n{readme.BEGIN}\n\n| new |\n\n{readme.END}\nafter\n"
    assert readme.update_readme(updated, "| new |") == updated


@pytest.mark.parametrize("text", ["no marks", readme.BEGIN, f"{readme.BEGIN}{readme.BEGIN}{readme.END}"])
def test_missing_or_doubled_marks_are_an_error(text):
    with pytest.raises(ValueError, match="once each"):
        readme.update_readme(text, "table")


def test_the_readme_is_not_stale(monkeypatch):
    monkeypatch.delenv("FL_UTILS_RESULTS", raising=False)
    text = (paths.project_root() / "README.md").read_text()
    assert readme.update_readme(text, readme.results_table()) == text, "run `make figures`"
