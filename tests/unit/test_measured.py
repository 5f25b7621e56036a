"""What is computed once: kept whole, found again by name, and never computed where that is forbidden."""

import numpy as np
import pandas as pd
import pytest

from fl_utils.experiments.measured import Content, Layout, digest, load, load_or_compute, write
from fl_utils.records import RecordError

LAYOUT = Layout("scores", ("one", "two"), "%.3g", dtype={"client": str}, arrays="maps")


@pytest.fixture
def content():
    one = pd.DataFrame({"client": ["0", "07"], "value": [0.123456, 2.0]})
    two = pd.DataFrame({"client": ["all"], "count": [3]})
    return Content({"one": one, "two": two}, {"zeta": 1, "alpha": [2, "b"]}, {"grey": np.arange(6, dtype=np.uint8)})


def test_it_is_computed_once_and_then_loaded(content, tmp_path, monkeypatch):
    folder, asked = tmp_path / "kind" / "first_01", []

    def compute():
        asked.append(folder.exists())
        return content

    first = load_or_compute(folder, LAYOUT, "smoke", compute)
    monkeypatch.setenv("FL_UTILS_NO_TRAINING", "1")
    again = load_or_compute(folder, LAYOUT, "smoke", compute)
    assert asked == [False] and list(folder.parent.iterdir()) == [folder]
    assert sorted(path.name for path in folder.iterdir()) == ["facts.json", "maps.npz", "one.csv", "two.csv"]
    assert (folder / "one.csv").read_text() == "client,value\n0,0.123\n07,2\n"
    for found in (first, again):  # the first one, too, is what stands in the files
        assert found.tables["one"].to_dict("list") == {"client": ["0", "07"], "value": [0.123, 2.0]}
        pd.testing.assert_frame_equal(found.tables["two"], content.tables["two"])
        assert found.facts == content.facts and list(found.facts) == ["zeta", "alpha"]
        np.testing.assert_array_equal(found.arrays["grey"], content.arrays["grey"])
        assert set(found.arrays) == {"grey"} and found.arrays["grey"].dtype == np.uint8


@pytest.mark.parametrize(("layout", "said"), [
    (LAYOUT, "no scores first_01 in .*kind, and this command does not compute them. Run `make reproduce PROFILE=paper"),
    (Layout("sums", ("one",), "%.3g", verb="make"), "no sums first_01 .* does not make them"),
])
def test_it_is_not_computed_where_that_is_forbidden(layout, said, tmp_path, monkeypatch):
    monkeypatch.setenv("FL_UTILS_NO_TRAINING", "1")
    with pytest.raises(RecordError, match=said):
        load_or_compute(tmp_path / "kind" / "first_01", layout, "paper", lambda: pytest.fail("computed"))
    assert not (tmp_path / "kind").exists()


@pytest.mark.parametrize("file", ["one.csv", "two.csv", "maps.npz", "facts.json"])
def test_a_file_that_is_gone_or_damaged_says_what_to_do(file, content, tmp_path):
    folder = tmp_path / "first_01"
    write(folder, LAYOUT, content)
    whole = (folder / file).read_bytes()
    for damaged in (b"", *([b"no archive", whole[:-30]] if file == "maps.npz" else [])):
        (folder / file).write_bytes(damaged)
        with pytest.raises(RecordError, match="first_01 cannot be read: .* Delete it and run again"):
            load(folder, LAYOUT)
    (folder / file).unlink()
    with pytest.raises(RecordError, match=f"first_01 cannot be read: .*{file}.* Delete it and run again"):
        load(folder, LAYOUT)


def test_a_name_is_of_all_that_decides_and_not_of_the_order_of_fields():
    one = [2, "paper", {"rate": 0.1, "seed": 0}, ["a", "b"]]
    assert digest(one) == digest([2, "paper", {"seed": 0, "rate": 0.1}, ["a", "b"]]) and len(digest(one)) == 8
    others = ([1, *one[1:]], [*one[:2], {"rate": 0.1, "seed": 1}, one[3]], [*one[:3], ["b", "a"]])
    assert len({digest(one), *map(digest, others)}) == 4
