"""A small grid gives the same records in one process, in two, killed and started again, and on a Ray cluster.

This file is also the program that sweeps: `python tests/end_to_end/test_grid.py alone|sweep|ray <folder>`. Processes
are stopped at a stated event (a save, a lock that is held), never after a stated time.
"""

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from fl_utils import paths, records
from fl_utils.experiments import jobs, parallel, plans, ray_cluster

LIMIT_S = 1800  # against hanging for ever; far more than a busy machine needs
ROOT = Path(__file__).resolve().parents[2]
TOTAL_ROUNDS = 4
EXPERIMENT = "grid"


def configs():
    """Three runs, in the order in which they are handed out."""
    arms = [("centralized", 0), ("fedavg", 0), ("local", 0)]
    return [
        plans.base_config(
            "smoke", "phantom_brain", method=method, seed=seed, image_size_px=24, num_images=96,
            total_rounds=TOTAL_ROUNDS, client_epochs_per_round=1,
            **({} if method == "centralized" else {"num_clients": 2}),
        )
        for method, seed in arms
    ]


def use(folder: Path) -> None:
    os.environ |= {"FL_UTILS_RESULTS": str(folder / "results"), "FL_UTILS_CACHE": str(folder / "cache")}
    os.environ.pop("FL_UTILS_NO_TRAINING", None)


# --- the programs ---


def hold_after_saves(folder: Path, rounds_of: dict[str, int]) -> None:
    """A run named in `rounds_of` saves after each round, and stops for ever after that round's save."""
    from fl_utils.learning import rounds

    save = rounds.save_checkpoint

    def save_and_hold(path, **content):
        save(path, **content)
        run = path.parent.name
        if content["done"] >= rounds_of.get(run, TOTAL_ROUNDS + 1):
            (folder / f"{run}.holds").touch()
            time.sleep(10 * LIMIT_S)

    rounds.save_checkpoint = save_and_hold
    jobs.run = functools.partial(jobs.run, checkpoint_interval_s=0)


def held_runs(locks: Path) -> dict[int, str]:
    """Process id -> name of the run whose lock it holds, as the kernel lists them."""
    by_inode = {path.stat().st_ino: path.stem for path in locks.glob("*.lock")}
    found = {}
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and (inode := int(fields[5].split(":")[2])) in by_inode:
            found[int(fields[4])] = by_inode[inode]
    return found


def kill_at_work(locks: Path) -> str:
    """Kills one process that is in the middle of a run; returns the run's name."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for pid, name in held_runs(locks).items():
            os.kill(pid, signal.SIGSTOP)  # so that it cannot finish between the look and the kill
            if held_runs(locks).get(pid) == name:
                os.kill(pid, signal.SIGKILL)
                return name
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.02)
    raise AssertionError("no process was seen at work")


def main_alone(folder: Path) -> None:
    parallel.sweep(configs(), experiment=EXPERIMENT)


def main_sweep(folder: Path) -> None:
    killed = []
    if (folder / "kill_one").exists():
        threading.Thread(target=lambda: killed.append(kill_at_work(folder / "cache" / "locks")), daemon=True).start()
    parallel.sweep(configs(), experiment=EXPERIMENT, workers=2)
    (folder / "report.json").write_text(json.dumps({"killed": killed}))


def main_ray(folder: Path) -> None:
    os.environ["RAY_TMPDIR"] = (folder / "ray_folder").read_text()  # else it needs, and writes in, the machine's own
    import ray
    from ray.cluster_utils import Cluster

    ray_cluster.CONNECT_TIMEOUT_S = LIMIT_S
    (folder / "node").mkdir()
    use(folder / "node")  # what the nodes' processes inherit
    os.environ["FL_UTILS_RESULTS"] = str(folder / "node" / "must_stay_empty")
    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        use(folder)  # the driver's own: no folder is shared
        killed = []
        locks = folder / "node" / "cache" / "locks"
        threading.Thread(target=lambda: killed.append(kill_at_work(locks)), daemon=True).start()
        parallel.sweep(configs(), experiment=EXPERIMENT, ray_address=cluster.address)
        left = [str(path) for path in (folder / "node").rglob("metrics.csv")]
        (folder / "report.json").write_text(json.dumps({"killed": killed, "on_node": left}))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ in ("__main__", "__mp_main__"):  # the second: a spawned worker, which reads its parent's program
    FOLDER = Path(sys.argv[2])
    if (FOLDER / "hold.json").exists():
        hold_after_saves(FOLDER, json.loads((FOLDER / "hold.json").read_text()))
if __name__ == "__main__":
    use(FOLDER)
    {"alone": main_alone, "sweep": main_sweep, "ray": main_ray}[sys.argv[1]](FOLDER)
    sys.exit()


# --- the tests ---

import pytest  # noqa: E402

pytestmark = pytest.mark.timeout(5 * LIMIT_S)


@pytest.fixture(scope="module")
def expected(folders):
    """Files of the records of an uninterrupted sweep in one process."""
    found = parallel.sweep(configs(), experiment=EXPERIMENT, progress=False)
    assert [record.config["method"] for record in found] == [config.method for config in configs()]
    return tables(folders)


def tables(folder: Path) -> dict[str, bytes]:
    """Every record's files as bytes, without what may differ: the duration."""
    found = {}
    for path in (folder / "results" / "smoke" / "runs" / EXPERIMENT).glob("*/*"):
        content = path.read_bytes()
        if path.name == "environment.json":
            facts = json.loads(content)
            assert facts.pop("duration_s") > 0
            facts.pop("git_commit")  # a maintainer may commit meanwhile
            content = json.dumps(facts).encode()
        found[f"{path.parent.name}/{path.name}"] = content
    return found


def differing(folder: Path, expected: dict[str, bytes]) -> list[str]:
    found = tables(folder)
    assert set(found) == set(expected) and len(found) == 4 * len(configs())
    return [name for name in found if found[name] != expected[name]]


def start(mode: str, folder: Path, **environment) -> subprocess.Popen:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, __file__, mode, str(folder)], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )


def end(process: subprocess.Popen) -> None:
    """Whatever is left of a program whose test failed."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


def finish(folder: Path, *processes: subprocess.Popen) -> None:
    try:
        for process in processes:
            assert process.wait(timeout=LIMIT_S) == 0, (folder / "log").read_text()[-4000:]
    finally:
        for process in processes:
            end(process)


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def wait_for(condition, folder: Path, what: str, process=None):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        ended = process is not None and process.poll() is not None
        assert not ended and time.monotonic() < deadline, f"no {what}:\n{(folder / 'log').read_text()[-4000:]}"
        time.sleep(0.02)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_two_workers_give_the_same_records_also_when_one_dies(expected, tmp_path):
    (tmp_path / "kill_one").touch()
    finish(tmp_path, start("sweep", tmp_path))
    (killed,) = report(tmp_path)["killed"]
    log = (tmp_path / "log").read_text()
    assert "exit code -9" in log and killed in log
    assert differing(tmp_path, expected) == []


def test_killed_three_times_and_finished_by_two_sweeps_at_once(expected, tmp_path):
    seed = 4
    draw = random.Random(seed)
    names = [jobs.name_of(config) for config in configs()]
    victims = sorted(draw.choices(range(len(names)), k=3))
    print(f"seed {seed}: killed while at the runs {victims}")
    for session, victim in enumerate(victims):
        # Runs before the victim may end; it and those after it hold at a save of their own. Later sessions go on
        # from there, so each leaves rounds for the next.
        hold = {name: draw.randint(session + 1, TOTAL_ROUNDS - 2 + session) for name in names[victim:]}
        print(f"  kill {session}: {names[victim]} after the save of round {hold[names[victim]]}")
        (tmp_path / "hold.json").write_text(json.dumps(hold))
        for path in tmp_path.glob("*.holds"):
            path.unlink()
        process = start("sweep", tmp_path)
        try:
            wait_for((tmp_path / f"{names[victim]}.holds").exists, tmp_path, f"save of {names[victim]}", process)
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=LIMIT_S)
        finally:
            end(process)
        assert process.returncode == -signal.SIGKILL
        assert len(family) >= 2
        for child in family:
            wait_for(lambda child=child: gone(child), tmp_path, f"end of {child}")
        root = tmp_path / "results" / "smoke" / "runs" / EXPERIMENT
        whole = {record.path.name for record in records.load_all(root)}  # raises when one is half there
        assert whole <= set(names[:victim])

    # Two sweeps go on at once: what one is at, the other leaves to it.
    (tmp_path / "hold.json").unlink()
    finish(tmp_path, start("alone", tmp_path), start("alone", tmp_path))
    assert differing(tmp_path, expected) == []


def test_a_ray_cluster_of_two_nodes_gives_the_same_records_also_when_a_worker_dies(expected, tmp_path):
    pytest.importorskip("ray", reason="Ray cannot be imported here")
    # Ray puts sockets there, whose paths must be short.
    short = tempfile.mkdtemp(prefix="ray_", dir="/tmp")
    (tmp_path / "ray_folder").write_text(short)
    try:
        # Loopback only: Ray else takes the machine's own address for 127.0.0.1. Its workers run at niceness 15 by
        # itself and are given up when they take a minute to start: on a busy machine none would ever work.
        ray = {
            "ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "USAGE_STATS_ENABLED": "0", "worker_niceness": "0",
            "worker_register_timeout_seconds": str(LIMIT_S),
        }
        finish(tmp_path, start("ray", tmp_path, **{f"RAY_{name}": value for name, value in ray.items()}))
    finally:
        shutil.rmtree(short, ignore_errors=True)
    (killed,) = report(tmp_path)["killed"]
    assert killed in {path.name for path in paths.runs_root("smoke").joinpath(EXPERIMENT).iterdir()}
    assert report(tmp_path)["on_node"] == [], "records are trained into a temporary folder"
    assert differing(tmp_path, expected) == []
