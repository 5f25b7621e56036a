"""The worker process alone, with programs that stand in for TFF's: no TensorFlow is loaded here."""

import os
import stat
import subprocess
import time

import psutil
import pytest

from fl_utils import children
from fl_utils.learning import worker as worker_lib
from fl_utils.learning.worker import EngineError, Worker


@pytest.fixture
def fake_binary(tmp_path, monkeypatch):
    def make(script: str):
        path = tmp_path / "worker_binary"
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(worker_lib, "worker_binary", lambda: path)
        return path

    monkeypatch.setenv("FL_UTILS_CACHE", str(tmp_path / "cache"))
    return make


def start(timeout_s=10.0, cancelled=lambda: False):
    log = worker_lib.new_log()
    with pytest.raises(EngineError) as caught:
        Worker.start(log, 2, timeout_s, cancelled)
    return log, str(caught.value)


def test_hanging_worker_is_named_and_ended(fake_binary, tmp_path):
    fake_binary(f"echo loading the model; echo $$ > {tmp_path}/pid; exec sleep 600\n")
    log, message = start()
    assert "did not answer within 10 s" in message and str(log) in message and "loading the model" in message
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_dying_worker_is_named_at_once(fake_binary):
    fake_binary("echo cannot allocate memory >&2; exit 7\n")
    log, message = start(timeout_s=60)
    assert "exit code 7" in message and str(log) in message and "cannot allocate memory" in message


def test_start_can_be_cancelled(fake_binary):
    fake_binary("exec sleep 600\n")
    _, message = start(timeout_s=60, cancelled=lambda: True)
    assert "stopped while" in message


def test_missing_binary_says_what_was_expected(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_UTILS_CACHE", str(tmp_path))
    monkeypatch.setattr(worker_lib, "worker_binary", lambda: tmp_path / "nothing_here")
    _, message = start()
    assert str(tmp_path / "nothing_here") in message and "make setup" in message


def test_kill_ends_a_stopped_process_and_removes_its_folder(fake_binary):
    fake_binary("exec sleep 600\n")
    worker = Worker(worker_lib.new_log(), 2)
    psutil.Process(worker.pid).suspend()
    folder = worker._folder
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    worker.kill()
    worker.kill()
    assert not worker.alive() and not psutil.pid_exists(worker.pid) and not folder.exists()


def test_worker_gets_its_options_and_its_own_log_level(fake_binary, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    fake_binary('echo "options $@ level $TF_CPP_MIN_LOG_LEVEL"; exit 1\n')
    _, message = start()
    assert "--max_concurrent_computation_calls=2 level 0" in message


def test_launcher_ends_when_its_parent_is_gone_already():
    started = time.monotonic()
    not_its_parent = "1" if os.getpid() != 1 else "2"
    done = subprocess.run([worker_lib.sys.executable, "-I", "-S", "-c", worker_lib._LAUNCHER, not_its_parent,
                           "/bin/sleep", "600"], timeout=120)
    assert done.returncode == 0 and time.monotonic() - started < 120


def test_only_the_newest_logs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_UTILS_CACHE", str(tmp_path))
    logs = [worker_lib.new_log() for _ in range(worker_lib.LOGS_KEPT + 3)]
    assert len(list((tmp_path / "logs").iterdir())) == worker_lib.LOGS_KEPT and logs[-1].exists()


def test_log_goes_elsewhere_when_the_cache_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FL_UTILS_CACHE", str(tmp_path / "file" / "below"))
    log = worker_lib.new_log()
    assert log.exists()
    log.unlink()


def test_log_tail_keeps_the_last_lines_and_survives_a_missing_file(tmp_path):
    log = tmp_path / "log"
    log.write_text("\n".join(f"line {i}" for i in range(100)))
    assert "line 99" in worker_lib.log_tail(log) and "line 10\n" not in worker_lib.log_tail(log)
    assert "cannot be read" in worker_lib.log_tail(tmp_path / "none")


def test_address_constant_is_in_tffs_worker_exactly_once():
    assert worker_lib._find_once(worker_lib.worker_binary().resolve(), worker_lib._LISTEN_EVERYWHERE) is not None


def test_address_constant_must_be_unique(tmp_path):
    for content, expected in [(b"", None), (b"none", None), (b"a[::]:", 1), (b"[::]:[::]:", None)]:
        path = tmp_path / f"binary_{len(content)}"
        path.write_bytes(content)
        assert worker_lib._find_once(path, b"[::]:") == expected


def test_folders_of_killed_processes_are_removed_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(children.tempfile, "tempdir", str(tmp_path) if len(str(tmp_path)) <= 60 else "/tmp")
    root = children.Path(children.tempfile.gettempdir())
    ended = subprocess.Popen(["true"])
    ended.wait(timeout=60)
    old, recent, used = (root / f"fl_utils_worker_{pid}_{name}"
                         for pid, name in [(ended.pid, "old"), (ended.pid, "recent"), (os.getpid(), "used")])
    for folder in (old, recent, used):
        folder.mkdir()
    for folder in (old, used):
        os.utime(folder, (0, 0))
    created = children.new_socket_folder("worker")
    assert [folder.exists() for folder in (old, recent, used, created)] == [False, True, True, True]
    for folder in (recent, used, created):
        folder.rmdir()
