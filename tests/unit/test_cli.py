"""The command line, as a user calls it. Nothing here trains, and nothing loads TensorFlow."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fl_utils import __version__, cli, doctor, paths
from fl_utils.config import ConfigError
from fl_utils.experiments import plans, run

COMMANDS = ("reproduce", "figures", "sweep", "doctor", "data")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Brain MRI in the real layout, 3 training and 2 test images a class; one test image is a copy."""
    monkeypatch.setenv("FL_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FL_UTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FL_UTILS_RESULTS", str(tmp_path / "results"))
    rng, root = np.random.default_rng(0), tmp_path / "data" / "brain_mri"
    for part, count in (("Training", 3), ("Testing", 2)):
        for folder in ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor"):
            (root / part / folder).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / folder / f"image({i}).png")
    copy = root / "Testing" / "no_tumor" / "image(0).png"
    copy.write_bytes((root / "Training" / "no_tumor" / "image(1).png").read_bytes())
    return root


def called(*arguments):
    """In this process; what has a traceback is raised."""
    return CliRunner().invoke(cli.app, arguments, catch_exceptions=False)


def started(*arguments):
    """In a process of its own, as `fl-utils` is."""
    command = [sys.executable, "-m", "fl_utils.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=paths.project_root())


def test_help_names_every_command():
    done = started("--help")
    assert done.returncode == 0 and all(f" {name} " in done.stdout for name in COMMANDS)
    assert called("data", "--help").exit_code == 0 and called("reproduce", "--help").exit_code == 0


def test_version():
    assert called("--version").output == f"fl-utils {__version__}\n"


def test_an_unknown_command_is_refused():
    assert called("fly").exit_code == 2


def test_data_list_says_what_is_at_hand(data):
    lines = {line.split()[0]: line.split()[1] for line in called("data", "list").output.splitlines()}
    assert lines == {"brain_mri": "found", "chest_xray": "missing", "phantom_brain": "generated", "phantom_chest": "generated"}


def test_data_audit_counts_copies(data):
    counts = json.loads(called("data", "audit", "brain_mri", "--json").output)
    assert counts["files"] == 20 and counts["distinct"] == 19
    assert counts["duplicate_groups"] == counts["cross_split_groups"] == counts["test_pictures_in_train"] == 1
    assert counts["label_conflicts"] == 0
    text = called("data", "audit", "brain_mri", "--image-size-px", "16").output
    assert "test_pictures_in_train" in text and "in_other_split" in text and "pituitary" in text


def one_sentence(done):
    """What an error looks like: exit code 1, one text on stderr, no traceback."""
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("Error: ") and "Traceback" not in done.stderr
    return done.stderr


def test_missing_data_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_UTILS_DATA", str(tmp_path))
    assert "FL_UTILS_DATA" in one_sentence(started("data", "audit", "brain_mri", "--json"))


def test_an_unknown_profile_is_one_sentence():
    text = one_sentence(started("reproduce", "--profile", "big"))
    assert text == "Error: Profile 'big' is not known; expected one of smoke, quick, paper.\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data", "audit", "spleen_ct"], "There is no dataset 'spleen_ct'"),
        (["sweep", "--profile", "big"], "Profile 'big' is not known"),
        (["sweep", "--profile", "smoke", "--dataset", "brain_mri"], "has no data set 'brain_mri'"),
        (["reproduce", "--profile", "smoke", "--only", "99"], "No notebook 99"),
    ],
)
def test_errors_are_told_with_exit_code_1(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fl-utils", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    assert ended.value.code == 1 and told.err.startswith("Error: ") and said in told.err and told.out == ""


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fl-utils", "sweep", "--profile", "smoke"])
    monkeypatch.setattr(plans, "datasets_of", lambda profile: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_ctrl_c_ends_with_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fl-utils", "sweep", "--profile", "smoke"])
    monkeypatch.setattr(plans, "configs_01", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130 and "the same command goes on from there" in capsys.readouterr().err


def test_doctor_examines_and_passes_its_exit_code_on(monkeypatch):
    for code in (0, 1):
        monkeypatch.setattr(doctor, "run", lambda code=code: code)
        assert called("doctor").exit_code == code


def test_sweep_runs_both_notebooks_of_every_data_set_or_of_one(monkeypatch):
    swept = []
    monkeypatch.setattr(plans, "sweep", swept.extend)
    text = called("sweep", "--profile", "smoke").output
    assert text.startswith("phantom_brain: ") and "phantom_chest: " in text
    assert {config.dataset for config in swept} == {"phantom_brain", "phantom_chest"}
    assert {config.method for config in swept} == {"centralized", "local", "fedavg"}
    swept.clear()
    called("sweep", "--profile", "smoke", "--dataset", "phantom_chest")
    assert {config.dataset for config in swept} == {"phantom_chest"}


def test_figures_with_a_missing_record_do_not_train(data, tmp_path, monkeypatch, capsys):
    """The notebook runs in a kernel of its own, which must be told not to train."""
    project = tmp_path / "project"
    (project / "notebooks" / "src").mkdir(parents=True)
    (project / "notebooks" / "src" / "01_figures.py").write_text(
        '# %% tags=["parameters"]\nPROFILE = "quick"\n\n# %%\nimport sys\nfrom fl_utils.experiments import plans\n\n'
        '# %%\nconfig = plans.base_config(PROFILE, "brain_mri", method="centralized")\ntry:\n    plans.sweep([config])\n'
        "finally:\n    print('tensorflow' in sys.modules)\n"
    )
    monkeypatch.setattr(paths, "project_root", lambda: project)
    monkeypatch.setattr(sys, "argv", ["fl-utils", "figures"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().err
    assert ended.value.code == 1 and "01_figures failed in cell 4: RecordError: There is no record of brain_mri_centralized" in told
    assert "this command does not train" in told and "make reproduce PROFILE=paper" in told
    assert not (tmp_path / "results" / "runs").exists() and not (tmp_path / "cache" / "checkpoints").exists()
    failed = (project / "notebooks" / "01_figures.failed.ipynb").read_text()
    assert "False\\n" in failed and "True\\n" not in failed


def test_what_is_there_is_loaded_also_where_training_is_off(data, monkeypatch):
    monkeypatch.setenv("FL_UTILS_NO_TRAINING", "1")
    config = plans.base_config("paper", "brain_mri", method="centralized")
    monkeypatch.setattr(run, "_train", lambda *_: pytest.fail("it trained"))
    monkeypatch.setattr(run.records, "find_record", lambda *_: "the record")
    assert run.run(config, experiment="classification") == "the record"
    with pytest.raises(ConfigError, match="has no data set 'phantom_brain'"):
        plans.base_config("paper", "phantom_brain", method="centralized")
