"""The environment's files agree with each other, and the set-up refuses what cannot work.

Nothing here needs the network: the Makefile runs with a stand-in for Python that records what it
is asked to install.
"""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fl_utils import doctor, platform_check

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
REQUIREMENTS = (ROOT / "requirements.lock").read_text(encoding="utf-8")
AVX = {"sse", "avx"}


# --- the lock, and what is exported from it ---


def _locked_versions():
    versions = {}
    for package in LOCK["package"]:
        if "registry" in package["source"]:
            versions.setdefault(canonicalize_name(package["name"]), set()).add(package["version"])
    return versions


def _exported_versions(text):
    versions = {}
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if line:
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==" and not requirement.url, line
            versions.setdefault(canonicalize_name(requirement.name), set()).add(specifier.version)
    return versions


def test_requirements_lock_gives_the_versions_of_uv_lock():
    assert _exported_versions(REQUIREMENTS) == _locked_versions(), "run `make lock`"


def test_a_changed_version_is_noticed():
    changed = REQUIREMENTS.replace("numpy==1.26.4", "numpy==1.26.3")
    assert changed != REQUIREMENTS
    assert _exported_versions(changed) != _locked_versions()


def test_each_package_has_one_version_on_every_python_3_11():
    for patch in ("3.11.0", "3.11.4", "3.11.5", "3.11.14"):
        environment = default_environment() | {"python_full_version": patch}
        names = []
        for line in REQUIREMENTS.splitlines():
            if line.partition("#")[0].strip():
                requirement = Requirement(line)
                if requirement.marker is None or requirement.marker.evaluate(environment):
                    names.append(canonicalize_name(requirement.name))
        assert sorted(names) == sorted(_locked_versions()), patch


def test_environment_yml_gives_conda_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip_part = environment["dependencies"]
    wanted = PYPROJECT["project"]["requires-python"]
    python = next(entry for entry in conda if entry.startswith("python="))
    assert python == "python=3.11" and wanted == ">=3.11,<3.12"
    assert (ROOT / ".python-version").read_text().strip() == "3.11"
    assert set(conda) == {python, "pip"}, "conda's own packages would differ from the lock"
    # pip reads these as lines of a requirements file that lies in the project's folder.
    versions = {}
    for line in pip_part["pip"]:
        if line.startswith("-r "):
            versions |= _exported_versions((ROOT / line[3:]).read_text(encoding="utf-8"))
        elif line != "-e .":
            versions |= _exported_versions(line)
    assert versions == _locked_versions()
    assert "-e ." in pip_part["pip"]


def test_uv_lock_was_made_from_this_pyproject():
    (project,) = (package for package in LOCK["package"] if package["source"] == {"editable": "."})

    def normalised(entries):
        return {
            (canonicalize_name(Requirement(entry).name), str(Requirement(entry).specifier))
            for entry in entries
        }

    def recorded(entries):
        return {
            (entry["name"], str(Requirement("x" + entry.get("specifier", "")).specifier))
            for entry in entries
        }

    metadata = project["metadata"]
    assert recorded(metadata["requires-dist"]) == normalised(PYPROJECT["project"]["dependencies"])
    assert recorded(metadata["requires-dev"]["dev"]) == normalised(
        PYPROJECT["dependency-groups"]["dev"]
    )
    assert recorded(LOCK["manifest"]["overrides"]) == normalised(
        PYPROJECT["tool"]["uv"]["override-dependencies"]
    )


def test_uv_lock_names_the_public_registry_only():
    text = (ROOT / "uv.lock").read_text(encoding="utf-8")
    assert set(re.findall(r"(?:https?|file|ssh|git)\S*?://[^/\"\s]+", text)) == {
        "https://pypi.org",
        "https://files.pythonhosted.org",
    }
    for package in LOCK["package"]:
        assert package["source"] in ({"registry": "https://pypi.org/simple"}, {"editable": "."})
    assert "://" not in REQUIREMENTS and not re.search(r"^\s*-", REQUIREMENTS, re.MULTILINE)


def test_no_torch_and_no_cuda():
    names = set(_locked_versions())
    assert not [name for name in names if name.startswith(("torch", "nvidia-", "cuda"))]
    assert "tensorflow" not in names and "tensorflow-cpu" in names


def test_the_stated_glibc_is_what_the_wheels_need():
    def needed(filename):
        tags = filename.removesuffix(".whl").split("-")[-1]
        if tags == "any":
            return 0
        minors = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)_x86_64", tags)]
        old = {"manylinux2014": 17, "manylinux2010": 12, "manylinux1": 5}
        minors += [old[tag] for tag in re.findall(r"(manylinux\d+)_x86_64", tags)]
        return min(minors, default=999)

    least = {}
    for package in LOCK["package"]:
        wheels = [wheel["url"].rsplit("/", 1)[1] for wheel in package.get("wheels", ())]
        usable = [name for name in wheels if re.search("-(cp311|abi3|py3|py2.py3)-", name)] or wheels
        if usable:
            least[package["name"]] = min(map(needed, usable))
    assert max(least.values()) == platform_check.MIN_GLIBC[1]


def test_what_is_installed_here_is_what_is_locked():
    assert doctor.check_versions().status == "ok"


# --- the check before the set-up ---


def test_the_check_parses_on_python_3_6_and_needs_the_standard_library_only():
    tree = ast.parse(Path(platform_check.__file__).read_text("utf-8"), feature_version=(3, 6))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names}
    assert names <= set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("system", "machine", "libc", "said"),
    [
        ("Darwin", "arm64", "", "macOS"),
        ("Darwin", "x86_64", "", "macOS"),
        ("Windows", "AMD64", "", "WSL 2"),
        ("MINGW64_NT-10.0-19045", "x86_64", "", "WSL 2"),
        ("CYGWIN_NT-10.0", "x86_64", "", "WSL 2"),
        ("Linux", "aarch64", "glibc 2.36", "Linux on aarch64"),
        ("Linux", "armv7l", "glibc 2.36", "x86-64 only"),
        ("FreeBSD", "amd64", "", "Linux only"),
        ("", "", "", "Unknown system"),
        ("Linux", "x86_64", "", "musl"),
        ("Linux", "x86_64", "musl 1.2", "musl"),
        ("Linux", "x86_64", "glibc 2.28", "glibc 2.28 is too old"),
    ],
)
def test_a_platform_without_wheels_is_refused(system, machine, libc, said):
    problem = platform_check.platform_problem(system, machine, libc, True, AVX)
    assert said in problem
    # One sentence that says what to do.
    assert problem.endswith(".") and "\n" not in problem
    assert re.search(r"\b(use|install)\b", problem)


@pytest.mark.parametrize("libc", ["glibc 2.31", "glibc 2.40", "glibc 3.0"])
def test_linux_on_x86_64_is_accepted(libc):
    assert platform_check.platform_problem("Linux", "x86_64", libc, True, AVX) is None
    assert platform_check.platform_problem("Linux", "x86_64", libc, True, None) is None


def test_32_bit_programs_and_a_processor_without_avx_are_refused():
    linux = ("Linux", "x86_64", "glibc 2.36")
    assert "32-bit" in platform_check.platform_problem(*linux, False, AVX)
    assert "no AVX" in platform_check.platform_problem(*linux, True, {"sse"})


def test_python_without_ensurepip_names_the_package():
    problem = platform_check.bootstrap_problem((3, 11), lambda name: name != "ensurepip")
    assert "python3-venv" in problem and "python3.11-venv" in problem
    assert platform_check.bootstrap_problem((3, 8), lambda name: True) is None
    assert "3.6 is too old" in platform_check.bootstrap_problem((3, 6), lambda name: True)


def test_too_little_disk_is_refused_unless_the_environment_is_there(tmp_path):
    here = {"system": "Linux", "machine": "x86_64", "libc": "glibc 2.36", "cpu_flags": AVX}
    problem = platform_check.find_problem(str(tmp_path), free_bytes=4 * 10**9, **here)
    assert "4.0 GB free" in problem and "5 GB are needed" in problem
    assert platform_check.find_problem(str(tmp_path), free_bytes=6 * 10**9, **here) is None
    (tmp_path / ".venv/lib/python3.11/site-packages/tensorflow").mkdir(parents=True)
    assert platform_check.find_problem(str(tmp_path), free_bytes=4 * 10**9, **here) is None


def test_this_machine_passes(capsys):
    assert platform_check.main([]) == 0
    assert platform_check.main(["--system", "Linux", "--machine", "riscv64"]) == 2
    assert "riscv64" in capsys.readouterr().err
    assert platform_check.read_cpu_flags("no/such/file") is None
    assert platform_check.main(["--libc", "musl 1.2"]) == 2


# --- the Makefile, with a stand-in for Python ---

_PYTHON = """#!/bin/sh
# Stands for a user's Python 3: the check is real, what it would install is a stand-in.
case "$*" in
  *platform_check.py*) exec "{python}" {hook} "$@" ;;
  "-m venv .uv") mkdir -p .uv/bin && cp "$0" .uv/bin/python ;;
  "-m pip install"*) echo "pip $*" >>calls; cp "{uv}" .uv/bin/uv ;;
  -V) ;;
  *) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""

_UV = """#!/bin/sh
echo "uv $1 $2" >>calls
case "$1 $2" in
  "python find") test ! -e no-python && echo /usr/bin/python3.11 ;;
  "python install") echo "error: dns" >&2; exit 1 ;;
  "sync --frozen")
    mkdir -p .venv/bin
    test ! -e broken-network || { echo "error: download" >&2; exit 1; }
    printf '#!/bin/sh\\n' >.venv/bin/python; chmod +x .venv/bin/python ;;
esac
"""


class _Project:
    """A folder with the files that the set-up reads, and a Python that installs nothing."""

    def __init__(self, folder):
        self.folder = folder / "a project"
        self.tools = folder / "tools"
        (self.folder / "fl_utils").mkdir(parents=True)
        self.tools.mkdir()
        for name in ("Makefile", "pyproject.toml", "uv.lock", ".python-version"):
            shutil.copy(ROOT / name, self.folder / name)
        shutil.copy(platform_check.__file__, self.folder / "fl_utils")
        self.tool("uv", _UV)
        self.python("")

    def tool(self, name, text):
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)

    def python(self, hook):
        text = _PYTHON.format(python=sys.executable, hook=hook, uv=self.tools / "uv")
        self.tool("python3", text)

    def make(self, *arguments):
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("MAKE")
        } | {"PATH": f"{self.tools}{os.pathsep}{os.environ['PATH']}"}
        environment.pop("MFLAGS", None)
        return subprocess.run(
            ["make", *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self):
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def refuses(self, said, *arguments):
        """make ends with 2, the sentence is the last thing before make's own line."""
        result = self.make(*(arguments or ("setup",)))
        assert result.returncode == 2, result
        *_, sentence, own = result.stderr.strip().splitlines()
        assert said in sentence and own.startswith("make: ***"), result.stderr
        assert not (self.folder / ".venv" / "ready").exists()
        return result


@pytest.fixture
def project(tmp_path):
    return _Project(tmp_path)


def _nothing_installed(project):
    return not (project.folder / ".uv").exists() and not (project.folder / ".venv").exists()


@pytest.mark.parametrize("command", ["setup", "reproduce", "test", "lab", "figures", "doctor"])
def test_every_command_refuses_another_platform_before_it_installs(project, command):
    project.tool("uname", '#!/bin/sh\n[ "$1" = -s ] && echo Darwin || echo arm64\n')
    project.refuses("no wheel for macOS", command)
    assert _nothing_installed(project) and not project.calls()


def test_a_python_without_ensurepip_is_refused_before_anything_is_installed(project):
    hook = project.tools / "without_ensurepip.py"
    hook.write_text(
        "import runpy, sys\n"
        "sys.modules['ensurepip'] = None\n"
        "sys.argv = sys.argv[2:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    project.python(f"'{hook}'")
    project.refuses("sudo apt-get install python3-venv")
    assert _nothing_installed(project)


def test_no_python_at_all_is_one_sentence(project):
    project.refuses("There is no `no-such-python`", "setup", "PYTHON=no-such-python")
    assert _nothing_installed(project)


def test_no_python_3_11_is_one_sentence_and_leaves_nothing(project):
    (project.folder / "no-python").touch()
    project.refuses("Python 3.11 is not on this machine and could not be fetched")
    assert _nothing_installed(project)
    assert "uv python install" in project.calls()


def test_a_set_up_is_done_once_and_an_interrupted_one_again(project):
    (project.folder / "broken-network").touch()
    project.refuses("The set-up is not complete")
    (project.folder / "broken-network").unlink()

    assert project.make("setup").returncode == 0
    assert (project.folder / ".venv/ready").read_text().strip() == str(project.folder)
    calls = project.calls()
    assert calls.count("uv sync --frozen") == 2
    assert sum(call.startswith("pip") for call in calls) == 1, "uv was fetched once"
    makefile = (ROOT / "Makefile").read_text()
    version = re.search(r"^UV_VERSION := (\S+)$", makefile, re.MULTILINE)[1]
    assert f"uv=={version}" in calls[0]

    assert project.make("setup").returncode == 0
    assert project.calls() == calls, "a second set-up does nothing"

    # A changed lock is installed; so is what was moved here from another folder.
    os.utime(project.folder / "uv.lock", (2**32, 2**32))
    project.make("setup")
    assert project.calls().count("uv sync --frozen") == 3
    os.utime(project.folder / "uv.lock", (1, 1))
    (project.folder / ".venv/ready").write_text("/elsewhere\n")
    project.make("setup")
    assert project.calls().count("uv sync --frozen") == 4


def test_help_is_the_default_and_lists_every_command(project):
    shown = project.make().stdout
    for command in ("setup", "reproduce", "test", "lab", "figures", "doctor", "clean", "help"):
        assert re.search(rf"^  {command} +\w", shown, re.MULTILINE)
    assert _nothing_installed(project)


# --- the doctor ---


def test_the_doctor_lists_findings_and_counts_problems(monkeypatch):
    lines = []
    monkeypatch.setattr(doctor, "check_platform", _failing_check)
    code = doctor.run(start_worker=False, write=lines.append)
    assert code == 1
    assert lines[0].startswith("problem") and "RuntimeError: ill" in lines[0]
    assert lines[-1].endswith("found.")
    names = [line.split()[1] for line in lines[1:-1]]
    assert names == ["python", "versions", "environment", "data", "disk", "machine", "chromium"]


def _failing_check():
    raise RuntimeError("ill")


def test_the_doctor_is_content_with_a_good_machine(monkeypatch):
    monkeypatch.setattr(
        doctor, "examine", lambda **_: [doctor.Finding("data", "note", "phantoms are used")]
    )
    lines = []
    assert doctor.run(write=lines.append) == 0
    assert lines == ["note    data             phantoms are used", "No problem found."]


def test_the_doctor_compares_versions_with_the_lock(tmp_path):
    lock = tmp_path / "requirements.lock"
    numpy = importlib.metadata.version("numpy")
    lock.write_text(f"# comment\nnumpy=={numpy}\nnot-here==1 ; sys_platform == 'never'\n")
    assert doctor.check_versions(lock).status == "ok"
    lock.write_text("numpy==0.1\nno-such-package==3\n")
    finding = doctor.check_versions(lock)
    assert finding.status == "problem"
    assert f"numpy {numpy} (lock: 0.1)" in finding.detail
    assert "no-such-package missing (lock: 3)" in finding.detail and "make setup" in finding.detail
    assert "git checkout" in doctor.check_versions(tmp_path / "none").detail
    with pytest.raises(ValueError, match="expected `name==version`"):
        doctor.read_requirements("numpy>=1")


def test_the_doctor_measures_the_environment(tmp_path, monkeypatch):
    (tmp_path / "one").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "one", tmp_path / "two")
    assert 100_000 <= doctor.folder_bytes(tmp_path) < 200_000
    assert doctor.check_environment_size(tmp_path).status == "ok"
    monkeypatch.setattr(doctor, "MAX_ENVIRONMENT_BYTES", 1000)
    assert doctor.check_environment_size(tmp_path).status == "problem"


def test_the_doctor_finds_data(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_UTILS_DATA", str(tmp_path))
    assert doctor.check_data().status == "note"
    (tmp_path / "brain_mri").mkdir()
    finding = doctor.check_data()
    assert finding.status == "ok" and finding.detail.startswith("brain_mri in ")
    assert "chest_xray" in finding.detail.partition("not there: ")[2]
    monkeypatch.setenv("FL_UTILS_DATA", str(tmp_path / "none"))
    assert doctor.check_data().status == "problem"


def test_the_doctor_knows_small_machines_and_browsers(monkeypatch):
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 10**18)
    assert doctor.check_disk().status == "problem"
    monkeypatch.setattr(doctor, "MIN_MEMORY_BYTES", 10**18)
    assert doctor.check_machine().status == "note"
    assert doctor.check_chromium(which=lambda name: None).status == "note"
    assert doctor.check_chromium(which=lambda name: "/bin/" + name).detail == "/bin/chromium"
    monkeypatch.setattr(doctor.sys, "version_info", (3, 12, 0))
    assert doctor.check_python().status == "problem"
    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    assert doctor.check_platform().status == "problem"


def test_the_doctor_starts_the_worker():
    assert doctor.check_worker().status == "ok"
