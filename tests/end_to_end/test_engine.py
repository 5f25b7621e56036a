"""TFF's worker from start to end, with real processes. Every wait has a generous limit; none decides by speed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

LIMIT_S = 240  # importing TFF takes 4 s, and ten times that on a busy machine
pytestmark = pytest.mark.timeout(3 * LIMIT_S)
ROOT = Path(__file__).resolve().parents[2]

PREFACE = """
import os, signal, sys, threading, time
from pathlib import Path
from fl_utils.learning import engine
from tests.end_to_end.rounds import sum_round, waiting_round
folder = Path(os.environ["TEST_FOLDER"])
def note():
    with open(folder / "pids", "a") as file:
        print(engine.worker_pid(), file=file)
engine.ensure_started()
note()
"""


@pytest.fixture
def environment(tmp_path):
    return {**os.environ, "TEST_FOLDER": str(tmp_path), "FL_UTILS_CACHE": str(tmp_path / "cache"),
            "PYTHONPATH": str(ROOT)}


def wait_for(condition, what: str):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {LIMIT_S} s for {what}"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assert_no_worker_left(folder: Path, at_least: int = 1):
    pids = [int(line) for line in (folder / "pids").read_text().split()]
    assert len(pids) >= at_least
    for pid in pids:
        wait_for(lambda pid=pid: gone(pid), f"the end of worker {pid}")


def run(code: str, environment, **arguments):
    return subprocess.run([sys.executable, "-c", PREFACE + code], env=environment, cwd=ROOT, timeout=LIMIT_S,
                          capture_output=True, text=True, **arguments)


@pytest.mark.parametrize("ending, exit_code", [
    ("raise ValueError('on purpose')", 1),
    ("os._exit(3)", 3),
    ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -signal.SIGTERM),
    ("os.kill(os.getpid(), signal.SIGKILL); time.sleep(60)", -signal.SIGKILL),
], ids=["exception", "os._exit", "SIGTERM", "SIGKILL"])
def test_worker_ends_with_python(ending, exit_code, environment, tmp_path):
    done = run("assert sum_round()([1, 2]) == 3\n" + ending, environment)
    assert done.returncode == exit_code, done.stderr
    assert_no_worker_left(tmp_path)


def test_normal_exit_in_a_pipe_returns_and_is_silent(environment, tmp_path):
    """`python script.py | cat` would hang if the worker held the pipe."""
    script = tmp_path / "script.py"
    script.write_text(PREFACE + "print('sum', sum_round()([1, 2]))\n")
    done = subprocess.run(["sh", "-c", '"$0" "$1" 2>&1 | cat', sys.executable, str(script)], env=environment, cwd=ROOT,
                          timeout=LIMIT_S, capture_output=True, text=True)
    assert done.stdout == "sum 3\n" and done.stderr == ""
    assert_no_worker_left(tmp_path)


def test_killed_while_a_round_runs(environment, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", PREFACE + "waiting_round(folder)([1, 2])"], env=environment,
                               cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for((tmp_path / "round_started").exists, "the round to start")
    finally:
        process.kill()
        process.wait(timeout=LIMIT_S)
    assert_no_worker_left(tmp_path)


def test_ctrl_c_ends_the_round_and_the_next_one_works(environment, tmp_path):
    code = """
try:
    waiting_round(folder)([1, 2])
except KeyboardInterrupt:
    print("interrupted", engine.is_running(), flush=True)
assert sum_round()([1, 2, 3]) == 6
note()
print("next round done")
"""
    process = subprocess.Popen([sys.executable, "-c", PREFACE + code], env=environment, cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    try:
        wait_for((tmp_path / "round_started").exists, "the round to start")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the whole group
        output, errors = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait(timeout=LIMIT_S)
    assert output == "interrupted False\nnext round done\n", output + errors
    assert_no_worker_left(tmp_path, at_least=2)


def test_jupyter_interrupt_and_restart(environment, tmp_path):
    from jupyter_client.manager import KernelManager

    kernel = KernelManager(kernel_name="python3")
    kernel.start_kernel(env=environment, cwd=str(ROOT))
    try:
        client = kernel.client()
        client.start_channels()
        client.wait_for_ready(timeout=LIMIT_S)
        outputs = []

        def execute(code, during=None):
            if during is not None:
                threading.Thread(target=during, daemon=True).start()
            reply = client.execute_interactive(code, timeout=LIMIT_S, output_hook=outputs.append)
            return reply["content"]

        def interrupt():
            wait_for((tmp_path / "round_started").exists, "the round to start")
            kernel.interrupt_kernel()

        assert execute(PREFACE)["status"] == "ok", outputs
        assert not [o for o in outputs if o["msg_type"] == "stream"], "the engine writes into the notebook"
        assert execute("waiting_round(folder)([1, 2])", during=interrupt)["ename"] == "KeyboardInterrupt"
        assert execute("assert not engine.is_running()\nassert sum_round()([1, 2]) == 3\nnote()")["status"] == "ok"
        kernel.restart_kernel(now=False)
        assert_no_worker_left(tmp_path, at_least=2)
        client.stop_channels()
    finally:
        kernel.shutdown_kernel(now=True)
        kernel.cleanup_resources()


# From here on in this process: nothing below ends Python.


@pytest.fixture
def engine(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_UTILS_CACHE", str(tmp_path / "cache"))
    from fl_utils.learning import engine as module

    module.stop()
    yield module
    pid = module.worker_pid()
    module.stop()
    assert not module.is_running()
    assert pid is None or gone(pid)


def test_start_is_idempotent_and_stop_can_be_undone(engine):
    from tests.end_to_end.rounds import sum_round

    engine.ensure_started()
    first, log = engine.worker_pid(), engine.log_path()
    engine.ensure_started()
    assert engine.worker_pid() == first and engine.is_running() and log.exists()
    assert "listening on" in log.read_text()
    engine.ensure_started(max_concurrent_computation_calls=1)  # another value: another worker
    second = engine.worker_pid()
    assert second != first and gone(first)
    engine.stop()
    engine.stop()
    assert gone(second) and not engine.is_running() and engine.worker_pid() is None and engine.log_path() is None
    with pytest.raises(engine.EngineError, match="ensure_started"):
        sum_round()([1, 2])
    engine.ensure_started()
    assert sum_round()([1, 2]) == 3


def test_no_open_port_where_the_kernel_allows_it(engine):
    engine.ensure_started()
    ports = [c for c in psutil.Process(engine.worker_pid()).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert bool(ports) != engine.is_private()


def test_worker_on_all_interfaces_is_the_fallback(engine, monkeypatch):
    from fl_utils.learning import worker
    from tests.end_to_end.rounds import sum_round

    monkeypatch.setattr(worker, "_listen_on_unix_socket", lambda *_: False)
    engine.ensure_started()
    assert not engine.is_private() and sum_round()([1, 2]) == 3


def test_late_change_of_the_address_is_noticed(engine, monkeypatch):
    from fl_utils.learning import worker
    from tests.end_to_end.rounds import sum_round

    monkeypatch.setattr(worker, "_listen_on_unix_socket", lambda *_: True)  # claims it, does nothing
    engine.ensure_started()
    assert not engine.is_private() and sum_round()([1, 2]) == 3


def test_worker_killed_once_mid_round(engine, tmp_path):
    from tests.end_to_end.rounds import sum_round, waiting_round

    engine.ensure_started()
    first = engine.worker_pid()

    def kill_then_let_it_end():
        wait_for((tmp_path / "round_started").exists, "the round to start")
        os.kill(first, signal.SIGKILL)
        (tmp_path / "round_may_end").touch()

    thread = threading.Thread(target=kill_then_let_it_end)
    thread.start()
    assert waiting_round(tmp_path)([1, 2]) == 3
    thread.join()
    assert engine.worker_pid() != first
    assert sum_round()([1, 2, 3]) == 6  # another number of clients: another executor, new to this worker


def test_worker_that_always_dies_gives_an_error(engine, tmp_path):
    from tests.end_to_end.rounds import waiting_round

    engine.ensure_started()
    done = threading.Event()

    def keep_killing():
        while not done.is_set():
            if (tmp_path / "round_started").exists():
                (tmp_path / "round_started").unlink()
                os.kill(engine.worker_pid(), signal.SIGKILL)
            time.sleep(0.05)

    thread = threading.Thread(target=keep_killing)
    thread.start()
    try:
        with pytest.raises(engine.EngineError, match="3 times in a row") as caught:
            waiting_round(tmp_path)([1, 2])
    finally:
        done.set()
        thread.join()
    assert str(engine.log_path()) in str(caught.value)


def test_worker_that_stops_answering_is_replaced(engine, tmp_path, monkeypatch):
    from fl_utils.learning import worker
    from tests.end_to_end.rounds import waiting_round

    monkeypatch.setattr(worker, "KEEPALIVE_INTERVAL_MS", 10_000)
    monkeypatch.setattr(worker, "KEEPALIVE_TIMEOUT_MS", 5_000)
    engine.ensure_started()
    first = engine.worker_pid()

    def suspend():
        wait_for((tmp_path / "round_started").exists, "the round to start")
        psutil.Process(first).suspend()
        (tmp_path / "round_may_end").touch()

    threading.Thread(target=suspend).start()
    assert waiting_round(tmp_path)([1, 2]) == 3
    assert gone(first) and engine.is_running()


@pytest.mark.parametrize("script, timeout_s, expected", [
    ("echo waiting for a licence; exec sleep 600", 20, "did not (answer|finish)"),
    ("echo no such instruction; exit 4", 120, "exit code 4"),
], ids=["hangs", "dies"])
def test_worker_that_cannot_start(engine, tmp_path, monkeypatch, script, timeout_s, expected):
    from fl_utils.learning import worker

    binary = tmp_path / "worker_binary"
    binary.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pids\n{script}\n")
    binary.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "worker_binary", lambda: binary)
        with pytest.raises(engine.EngineError, match=expected) as caught:
            engine.ensure_started(startup_timeout_s=timeout_s)
    assert "tff_worker_" in str(caught.value) and script.split("echo ")[1].split(";")[0] in str(caught.value)
    assert_no_worker_left(tmp_path)
    engine.ensure_started()  # with TFF's own again
    assert engine.is_running()


def test_error_of_the_computation_is_not_the_engines(engine):
    """A mistake in a graph is raised as it is, and the worker lives on."""
    from tests.end_to_end.rounds import failing_round

    engine.ensure_started()
    first = engine.worker_pid()
    with pytest.raises(Exception, match="on purpose") as caught:
        failing_round()([1, 2])
    assert not isinstance(caught.value, engine.EngineError) and engine.worker_pid() == first


def test_from_a_second_thread_and_from_two_at_once(engine):
    from tests.end_to_end.rounds import sum_round

    results, total = [], sum_round()

    def work():
        engine.ensure_started()
        results.extend(int(total([1, 2])) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join(timeout=LIMIT_S) for thread in threads]
    assert results == [3] * 10
    engine.ensure_started()
    assert total([1, 2]) == 3  # the worker outlives the threads that asked for it


def test_stop_during_a_round_of_another_thread(engine, tmp_path):
    from tests.end_to_end.rounds import waiting_round

    caught = []

    def work():
        engine.ensure_started()
        try:
            waiting_round(tmp_path)([1, 2])
        except engine.EngineError as error:
            caught.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    wait_for((tmp_path / "round_started").exists, "the round to start")
    engine.stop()
    thread.join(timeout=LIMIT_S)
    assert len(caught) == 1 and "stopped" in caught[0]


def test_forked_child_leaves_the_parents_worker_alone(environment, tmp_path):
    code = """
child = os.fork()
if child == 0:
    try:
        sum_round()([1, 2])
        os._exit(1)
    except engine.EngineError:
        sys.exit(0)  # with its atexit functions
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
first = engine.worker_pid()
assert first is not None and sum_round()([1, 2]) == 3 and engine.worker_pid() == first
"""
    done = run(code, environment)
    assert done.returncode == 0, done.stderr
    assert_no_worker_left(tmp_path)
