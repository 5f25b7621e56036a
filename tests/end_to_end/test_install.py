"""The suite is installed for real, in new folders: with make, with plain pip, and as conda calls pip.

Needs the network and some minutes, so FL_UTILS_TEST_INSTALL=1 asks for it. CI=true asks for pip's part:
.ci/run itself has made the environment with make by then.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fl_utils import doctor

ROOT = Path(__file__).resolve().parents[2]

_ASKED = os.environ.get("FL_UTILS_TEST_INSTALL") == "1"
_CI = os.environ.get("CI", "").lower() in ("1", "true")

# Minutes on a busy machine: 2.8 GB are unpacked and removed again.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

# What an environment must be able to do: TFF computes something in its worker.
_PROOF = """
import numpy as np
from fl_utils import doctor
problems = [f for f in doctor.examine() if f.status == "problem"]
assert not problems, problems
print("well installed")
"""


@pytest.fixture
def clone(tmp_path):
    """The files of the project that an installation reads, and nothing made by one."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in (
        "Makefile pyproject.toml uv.lock requirements.lock environment.yml .python-version README.md"
    ).split():
        shutil.copy(ROOT / name, folder / name)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fl_utils", folder / "fl_utils", ignore=ignored)
    yield folder
    # 2.3 GB each: pytest would keep the last three.
    shutil.rmtree(folder)


def _run(*command, cwd, **variables):
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAKE", "COV", "PYTHON", "VIRTUAL_ENV")) and name != "MFLAGS"
    }
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=kept | {"FL_UTILS_CACHE": str(cwd / ".cache")} | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


@pytest.mark.skipif(not _ASKED, reason="installs 2.3 GB: set FL_UTILS_TEST_INSTALL=1")
def test_make_setup_in_a_fresh_clone(clone):
    _run("make", "setup", cwd=clone)
    assert "well installed" in _run(".venv/bin/python", "-c", _PROOF, cwd=clone)
    assert doctor.folder_bytes(clone / ".venv") < doctor.MAX_ENVIRONMENT_BYTES
    again = _run("make", "setup", cwd=clone)
    assert "Installing" not in again
    _run("make", "clean", cwd=clone)
    assert not (clone / ".venv").exists() and not (clone / ".uv").exists()


@pytest.mark.skipif(not (_ASKED or _CI), reason="installs 2.3 GB: set FL_UTILS_TEST_INSTALL=1")
def test_plain_pip_and_conda_s_pip_in_a_fresh_virtual_environment(clone):
    _run(getattr(sys, "_base_executable", sys.executable), "-m", "venv", "fresh", cwd=clone)
    pip = (clone / "fresh/bin/python", "-m", "pip", "install", "-q")
    # The two commands of the README.
    _run(*pip, "--no-deps", "--no-compile", "-r", "requirements.lock", cwd=clone)
    _run(*pip, "--no-deps", "-e", ".", cwd=clone)
    assert "well installed" in _run("fresh/bin/python", "-c", _PROOF, cwd=clone)
    assert doctor.folder_bytes(clone / "fresh") < doctor.MAX_ENVIRONMENT_BYTES
    # conda hands the pip section of environment.yml to pip as a requirements file.
    environment = yaml.safe_load((clone / "environment.yml").read_text())
    lines = next(part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
    (clone / "condaenv.requirements.txt").write_text("\n".join(lines) + "\n")
    # The right versions are there already, so nothing but the project itself is installed again.
    told = _run(*pip[:-1], "-r", "condaenv.requirements.txt", cwd=clone, PIP_NO_DEPS="1", PIP_NO_COMPILE="0")
    assert told.count("Successfully installed fl-utils-") == 1 and "Collecting" not in told
