"""Records: round trip, names, whole or not at all, and what their files never hold."""

import errno
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fl_utils import records
from fl_utils.config import ExperimentConfig, make_config

FIELDS = {
    "dataset": "brain_mri", "method": "fedavg", "partition": "iid", "num_clients": 4, "seed": 3, "profile": "paper",
    "total_rounds": 10, "client_learning_rate": 0.03,
}  # fmt: skip
PRINT = "f" * 64


def config_of(**fields):
    return make_config(**(FIELDS | fields))


def metrics_table():
    return pd.DataFrame(
        [(1, "all", "test", "accuracy", 0.123456789), (1, "0", "validation", "loss", float("nan")), (2, "all", "test", "ece", 1e-9)],
        columns=records.METRIC_COLUMNS,
    )


def predictions_table(num=3):
    p = np.random.default_rng(0).dirichlet(np.ones(2), num)
    return pd.DataFrame(
        {"client": "all", "split": "test", "example": range(num), "group": range(num), "label": 0, "p0": p[:, 0], "p1": p[:, 1]}
    )


def write(root, config=None, fingerprint=PRINT, **changes):
    arguments = {"metrics": metrics_table(), "predictions": predictions_table(), "duration_s": 1.26} | changes
    return records.write_record(root, config or config_of(), fingerprint=fingerprint, **arguments)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_is_read_again(tmp_path):
    record = write(tmp_path, facts={"class_names": ["a", "b"]})
    assert record.path == tmp_path / records.run_id(config_of(), PRINT)
    assert sorted(content(record.path)) == ["config.json", "environment.json", "metrics.csv", "predictions.csv"]
    assert make_config(**record.config) == config_of()
    assert list(record.config)[:6] == ["dataset", "method", "partition", "num_clients", "seed", "profile"]
    pd.testing.assert_frame_equal(record.metrics, metrics_table(), rtol=1e-5)
    pd.testing.assert_frame_equal(record.predictions, predictions_table(), atol=6e-6)
    assert record.metrics["client"].tolist() == ["all", "0", "all"]  # text, also where it looks like a number
    assert record.environment["dataset_fingerprint"] == PRINT and record.environment["duration_s"] == 1.3
    assert record.environment["class_names"] == ["a", "b"]
    assert {"python", "platform", "cpu_count", "git_commit", "versions"} <= set(record.environment)
    assert oct(record.path.stat().st_mode & 0o777) == "0o755"
    assert [path.name for path in tmp_path.iterdir()] == [record.path.name]  # nothing temporary is left


def test_the_name_says_what_it_is():
    assert re.fullmatch(r"brain_mri_fedavg_iid_s3_[0-9a-f]{8}", records.run_id(config_of(), PRINT))


@pytest.mark.parametrize(
    "fields",
    [{"seed": 4}, {"client_learning_rate": 0.031}, {"split": "published"}, {"clients_per_round": 2}, {"profile": "quick"}],
)
def test_the_hash_depends_on_every_field(fields):
    assert records.run_id(config_of(**fields), PRINT)[-8:] != records.run_id(config_of(), PRINT)[-8:]


def test_the_hash_depends_on_the_images():
    assert records.run_id(config_of(), "e" * 64) != records.run_id(config_of(), PRINT)


def test_a_field_added_later_does_not_orphan_old_records(monkeypatch):
    class Later(ExperimentConfig):
        new_field: float = 0.5

    assert records.run_id(Later(**FIELDS), PRINT) == records.run_id(config_of(), PRINT)
    assert records.run_id(Later(**FIELDS, new_field=0.6), PRINT) != records.run_id(config_of(), PRINT)
    # A default that is written out is the same question.
    assert records.run_id(config_of(client_momentum=0.9, augment=True), PRINT) == records.run_id(config_of(), PRINT)


def test_hashes_of_published_records_do_not_change():
    # Committed records are found by this name: a change here means that all of them are lost.
    assert records.run_id(config_of(), PRINT) == "brain_mri_fedavg_iid_s3_7e5e0e62"


def test_columns_are_checked(tmp_path):
    with pytest.raises(records.RecordError, match="expected \\['round', 'client'"):
        write(tmp_path, metrics=metrics_table().drop(columns="split"))
    assert list(tmp_path.iterdir()) == []


# --- whole or not at all ---


def _full_disk(self, path, *args, **kwargs):
    Path(path).write_text("round,client")  # what fitted
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pd.DataFrame, "to_csv", _full_disk)
    with pytest.raises(records.RecordError) as caught:
        write(tmp_path)
    text = str(caught.value)
    assert "No space left on device" in text and records.run_id(config_of(), PRINT) in text and str(tmp_path) in text
    assert "FL_UTILS_RESULTS" in text and "resumes" in text
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_the_system_refuses_leaves_nothing(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(records.RecordError, match="could not be written"):
            write(tmp_path, predictions=predictions_table(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["to_csv", "rename"])
def test_an_existing_record_survives_a_failed_rewrite(tmp_path, monkeypatch, failing):
    record = write(tmp_path)
    before = content(record.path)
    if failing == "to_csv":
        monkeypatch.setattr(pd.DataFrame, "to_csv", _full_disk)
    else:
        monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(records.RecordError):
        write(tmp_path, duration_s=99.0)
    assert content(record.path) == before and list(tmp_path.iterdir()) == [record.path]


def test_a_rewrite_replaces_the_record(tmp_path):
    write(tmp_path)
    assert write(tmp_path, duration_s=99.0).environment["duration_s"] == 99.0
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file in the way")
    with pytest.raises(records.RecordError, match="could not be written to .*runs"):
        write(tmp_path / "runs" / "classification")


def test_a_write_killed_half_way_is_not_taken_for_a_record(tmp_path):
    code = (
        "import os, sys, pandas as pd; sys.path.insert(0, sys.argv[1]);"
        "import test_records as t; pd.DataFrame.to_csv = lambda *a, **k: os._exit(9);"
        "t.write(t.Path(sys.argv[2]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)], capture_output=True)
    assert done.returncode == 9, done.stderr
    assert list(records.load_all(tmp_path)) == [] and records.find_record(tmp_path, config_of(), PRINT) is None
    assert records.find_record(tmp_path, config_of(), None) is None
    assert write(tmp_path).path.is_dir()


# --- reading ---


@pytest.mark.parametrize("name", ["config.json", "metrics.csv", "predictions.csv", "environment.json"])
def test_a_missing_file_is_named(tmp_path, name):
    record = write(tmp_path)
    (record.path / name).unlink()
    with pytest.raises(records.RecordError, match=f"not a whole record: {name} missing. Delete it and run again"):
        records.load_record(record.path)


@pytest.mark.parametrize(
    ("name", "text"),
    [("config.json", b"{"), ("environment.json", b"\xff\xfe"), ("metrics.csv", b""), ("predictions.csv", b'a\n"')],
)
def test_a_broken_file_is_an_error_that_names_the_record(tmp_path, name, text):
    record = write(tmp_path)
    (record.path / name).write_bytes(text)
    with pytest.raises(records.RecordError, match=f"{record.path.name} cannot be read: .*Delete it and run again"):
        records.find_record(tmp_path, config_of(), PRINT)


def test_a_record_is_found_for_the_same_question_on_the_same_images_only(tmp_path):
    record = write(tmp_path)
    assert records.find_record(tmp_path, config_of(), PRINT).path == record.path
    assert records.find_record(tmp_path, config_of(), "e" * 64) is None
    assert records.find_record(tmp_path, config_of(seed=4), PRINT) is None
    assert records.find_record(tmp_path / "nowhere", config_of(), PRINT) is None


def test_without_the_images_the_configuration_is_enough(tmp_path):
    record = write(tmp_path)
    write(tmp_path, config_of(client_learning_rate=0.05))  # same beginning of the name
    assert records.find_record(tmp_path, config_of(), None).path == record.path
    assert records.find_record(tmp_path, config_of(client_learning_rate=0.07), None) is None


def test_without_the_images_a_record_from_before_a_new_field_is_found(tmp_path):
    record = write(tmp_path)
    old = json.loads((record.path / "config.json").read_text())
    del old["class_weighting"]
    (record.path / "config.json").write_text(json.dumps(old))
    assert records.find_record(tmp_path, config_of(), None).path == record.path
    assert records.find_record(tmp_path, config_of(class_weighting=False), None) is None


def test_load_all_filters_and_is_in_order(tmp_path):
    for seed in (2, 0, 1):
        write(tmp_path, config_of(seed=seed))
    (tmp_path / ".writing-x").mkdir()
    (tmp_path / "notes.txt").write_text("not a record")
    assert [record.config["seed"] for record in records.load_all(tmp_path)] == [0, 1, 2]
    assert [record.config["seed"] for record in records.load_all(tmp_path, seed=1, method="fedavg")] == [1]
    assert list(records.load_all(tmp_path / "nowhere")) == []


# --- what is committed ---


def test_no_path_no_host_no_clock(tmp_path):
    record = write(tmp_path)
    text = b"".join(content(record.path).values()).decode()
    for word in {str(tmp_path), str(records.project_root()), str(Path.home()) + "/", sys.prefix, socket.gethostname()}:
        assert word not in text, word
    assert not re.search(r"\b20\d\d-\d\d-\d\d|\d\d:\d\d:\d\d", text)
    assert str(int(time.time()))[:6] not in text


def test_the_same_run_writes_the_same_bytes(tmp_path):
    assert content(write(tmp_path / "a").path) == content(write(tmp_path / "b").path)


def test_the_commit_says_when_the_code_differs_from_it(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *arguments], cwd=tmp_path, check=True, capture_output=True)

    def commit():
        records._git_commit.cache_clear()
        return records._git_commit()

    monkeypatch.setattr(records, "project_root", lambda: tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    try:
        assert commit() == "unknown"  # no repository
        git("init", "-q")
        (tmp_path / "fl_utils").mkdir()
        (tmp_path / "fl_utils" / "a.py").write_text("1")
        git("add", ".")
        git("commit", "-qm", "one")
        assert re.fullmatch("[0-9a-f]{40}", commit())
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "x.csv").write_text("results are no change of the code")
        assert "+" not in commit()
        (tmp_path / "fl_utils" / "a.py").write_text("2")
        assert commit().endswith("+changes")
        monkeypatch.setenv("PATH", "")
        assert commit() == "unknown"  # no git
    finally:
        records._git_commit.cache_clear()
        shutil.rmtree(tmp_path / ".git", ignore_errors=True)
