"""Says, before anything is installed, whether the suite can be installed here.

Runs as a plain script (`python3 -I fl_utils/platform_check.py`), so it uses the standard library
only and no syntax newer than Python 3.6. On a machine that cannot work it prints one sentence that
says what to do, and ends with exit code 2; on one that can, it prints nothing.

`--system`, `--machine` and `--libc` state the platform instead of asking Python: the Makefile passes
what `uname` says, and the tests pass platforms that they do not run on.
"""

import argparse
import os
import platform
import shutil
import sys

# uv's wheel, and the pip that Python brings along, need this much.
MIN_BOOTSTRAP_PYTHON = (3, 8)
# The wheel of tensorflow-federated 0.87.0 is tagged manylinux_2_31 (Debian 11, Ubuntu 20.04).
MIN_GLIBC = (2, 31)
# The environment takes 2.3 GB, unpacked downloads and results the rest.
NEEDED_DISK_BYTES = 5 * 10**9
# Bringing an installed environment up to date needs little.
NEEDED_UPDATE_BYTES = 10**9

ELSEWHERE = "use a Linux x86-64 machine (a virtual or a cloud machine will do)"


def platform_problem(system, machine, libc, is_64bit=True, cpu_flags=None):
    """One sentence on why TensorFlow Federated cannot run on a platform, and what to do.

    Args:
      system: what `uname -s` says, for example "Linux", "Darwin", "MINGW64_NT-10.0"; or
        `platform.system()`.
      machine: what `uname -m` says, for example "x86_64", "aarch64".
      libc: "glibc 2.36" as `getconf GNU_LIBC_VERSION` says it; anything else is not glibc.
      is_64bit: whether programs are 64-bit; a 32-bit system may run on a 64-bit kernel.
      cpu_flags: set of the processor's features as in /proc/cpuinfo, or None when unknown.
    Returns:
      The sentence, or None when the platform is fine.
    """
    family = system.lower()
    if family == "darwin":
        return "macOS: TensorFlow Federated 0.87 has no wheel for macOS; {}.".format(ELSEWHERE)
    if family.startswith(("windows", "mingw", "msys", "cygwin")):
        return (
            "Windows: TensorFlow Federated 0.87 has no wheel for Windows; install WSL 2 "
            "(`wsl --install` in PowerShell), open its Linux shell and run the same command there."
        )
    if family != "linux":
        return "{}: TensorFlow Federated 0.87 has wheels for Linux only; {}.".format(
            system or "Unknown system", ELSEWHERE
        )
    if machine.lower() not in ("x86_64", "amd64") or not is_64bit:
        kind = machine if is_64bit else "32-bit programs"
        return "Linux on {}: TensorFlow Federated 0.87 has wheels for x86-64 only; {}.".format(
            kind or "an unknown processor", ELSEWHERE
        )
    version = _glibc_version(libc)
    if version is None:
        return (
            "This Linux does not use glibc (Alpine uses musl), and TensorFlow has no wheel for it; "
            "use a distribution with glibc {}.{} or newer, such as Debian 11 or Ubuntu 20.04."
        ).format(*MIN_GLIBC)
    if version < MIN_GLIBC:
        return (
            "glibc {}.{} is too old for TensorFlow Federated 0.87; use a distribution with "
            "glibc {}.{} or newer, such as Debian 11 or Ubuntu 20.04."
        ).format(*(version + MIN_GLIBC))
    if cpu_flags is not None and "avx" not in cpu_flags:
        return (
            "This processor (or virtual machine) has no AVX instructions, without which TensorFlow "
            "2.14 stops at import; use a machine that has them, or let the virtual machine pass them on."
        )
    return None


def bootstrap_problem(version, has_module):
    """One sentence on why this Python cannot set up the environment, and what to do.

    Args:
      version: tuple (major, minor) of the Python that runs the set-up.
      has_module: function: module name -> bool.
    Returns:
      The sentence, or None when it can.
    """
    if tuple(version) < MIN_BOOTSTRAP_PYTHON:
        return (
            "Python {}.{} is too old to run the set-up; install Python {}.{} or newer, or name one: "
            "`make setup PYTHON=python3.11`."
        ).format(*(tuple(version) + MIN_BOOTSTRAP_PYTHON))
    if not (has_module("venv") and has_module("ensurepip")):
        return (
            "Python {0}.{1} here cannot make virtual environments; on Debian or Ubuntu run "
            "`sudo apt-get install python3-venv` (or python{0}.{1}-venv), elsewhere install Python "
            "with its venv and ensurepip modules."
        ).format(*version)
    return None


def disk_problem(free_bytes, needed_bytes, folder):
    """One sentence when a folder's disk has less free space than is needed, else None."""
    if free_bytes >= needed_bytes:
        return None
    return (
        "Too little free disk space: {:.1f} GB free at {}, and {:.0f} GB are needed; "
        "free some, or clone the project to a larger disk."
    ).format(free_bytes / 1e9, folder, needed_bytes / 1e9)


def find_problem(root, system=None, machine=None, libc=None, is_64bit=None, cpu_flags=None,
                 version=None, has_module=None, free_bytes=None):
    """The first problem of this machine, or None.

    Args:
      root: the project's folder, where the environment goes.
      system, machine, libc, is_64bit, cpu_flags: see `platform_problem`.
      version, has_module: see `bootstrap_problem`.
      free_bytes: free bytes on the project's disk.
        What is None is read from this machine.
    Returns:
      One sentence, or None.
    """
    if is_64bit is None:
        is_64bit = sys.maxsize > 2**32
    if cpu_flags is None:
        cpu_flags = read_cpu_flags()
    return (
        platform_problem(
            platform.system() if system is None else system,
            platform.machine() if machine is None else machine,
            read_libc() if libc is None else libc,
            is_64bit,
            cpu_flags,
        )
        or bootstrap_problem(version or sys.version_info[:2], has_module or _has_module)
        or disk_problem(
            shutil.disk_usage(root).free if free_bytes is None else free_bytes,
            _needed_bytes(root),
            root,
        )
    )


def read_libc():
    """"glibc 2.36" as the C library itself says it, "" where it is another one."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return ""


def read_cpu_flags(path="/proc/cpuinfo"):
    """Set of the first processor's features, None where the system does not tell."""
    try:
        with open(path) as lines:
            for line in lines:
                if line.startswith("flags"):
                    return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return None


def _glibc_version(libc):
    name, _, number = libc.strip().partition(" ")
    parts = number.split(".")
    if name.lower() != "glibc" or len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        return None
    return int(parts[0]), int(parts[1])


def _has_module(name):
    # Debian without python3-venv has `venv` but no `ensurepip`; only an import is a proof.
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def _needed_bytes(root):
    installed = os.path.join(root, ".venv", "lib", "python3.11", "site-packages", "tensorflow")
    return NEEDED_UPDATE_BYTES if os.path.isdir(installed) else NEEDED_DISK_BYTES


def main(arguments=None):
    """Prints the problem, if any, to stderr. Returns the exit code: 0 or 2."""
    parser = argparse.ArgumentParser(description="Checks whether the suite can be installed here.")
    parser.add_argument("--system", help="instead of what this machine is: as `uname -s` says it")
    parser.add_argument("--machine", help="as `uname -m` says it")
    parser.add_argument("--libc", help="as `getconf GNU_LIBC_VERSION` says it")
    options = parser.parse_args(arguments)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    problem = find_problem(root, options.system, options.machine, options.libc)
    if problem is None:
        return 0
    sys.stderr.write("Cannot set up here. " + problem + " Nothing was installed.\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
