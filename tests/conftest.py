"""Shared by the tests: folders of their own for what a run writes, and a quiet TensorFlow.

TFF's worker is started by the first test that trains a federation and serves all that follow; `engine` ends it with
Python. Tests of the engine itself stop it, and the next learner starts another.
"""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As where a shell starts the tests in the background: Ctrl-C could not be tried, nor in the processes begun here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # as `engine` sets it; read once, when TensorFlow is loaded

import pytest  # noqa: E402


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Records and caches of a test module go below this folder, never into the project."""
    root = tmp_path_factory.mktemp("suite")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FL_UTILS_RESULTS", str(root / "results"))
        patch.setenv("FL_UTILS_CACHE", str(root / "cache"))
        patch.delenv("FL_UTILS_NO_TRAINING", raising=False)
        yield root
