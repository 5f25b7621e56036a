"""The real federation when its server, its line or its members' credentials fail, and when it is interrupted: the training ends
with the weights of an undisturbed one, and nobody who does not belong there takes part.

Where the weights are compared, it is to the last bit: the server adds the updates in the order of the hospitals' numbers, and
a hospital that is asked again computes the same again.
"""

import re
import resource
import shutil
import signal
import socket
import ssl
import struct
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import psutil
import pytest
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.node_pb2 import Node

from fl_utils.deployment.flower import Local, credentials, put_down, read_status
from fl_utils.deployment.flower.settings import read_federation, write_federation
from tests.end_to_end.federation_helpers import (
    checkpoint, commands, contributions, ended, events, final_weights, free_port, last_words, left_over, new_federation, reference,
    said, same_bits, typed, wait_for_event, wait_until,
)

pytestmark = pytest.mark.usefixtures("folders")


def assert_undisturbed(folder: Path, rounds: int) -> None:
    """Both hospitals' updates in each round, and the weights of the training without processes, to the last bit."""
    assert contributions(folder) == [[0, 1]] * rounds
    assert same_bits(final_weights(folder), reference(folder, [[0, 1]] * rounds))


# --- the server ---


def test_a_killed_server_and_a_full_disk_change_no_bit(tmp_path):
    folder, rounds = tmp_path / "federation", 40
    # The optimizer's state must come back as well.
    new_federation(folder, rounds=rounds, min_hospitals=2, max_void_rounds=100, method="fedadam", server_learning_rate=0.01)
    server = folder / "server"
    with Local(folder) as local:
        hospitals = {process.pid for process in local.hospitals.values()}
        wait_for_event(folder, f"Round 3 of {rounds}")
        (superlink,) = psutil.Process(local.server.pid).children()
        assert set(left_over(folder)) == {local.server.pid, superlink.pid, *hospitals}
        local.server.kill()
        local.server.wait()
        wait_until(lambda: set(left_over(folder)) == hospitals, "the end of the SuperLink", folder)
        wait_until(lambda: read_status(server)["state"] == "gone", "the end of the server", folder)
        done, before = checkpoint(folder)["done"], len(events(folder))
        assert 3 <= done < rounds

        local.start_server()
        wait_for_event(folder, f"Going on after round {done}.", since=before)
        for hospital in (0, 1):
            wait_for_event(folder, "is back.", since=before, hospital=hospital)
        wait_for_event(folder, f"Round {done + 2} of {rounds}", since=before)
        # From here on no file of the server can grow beyond half of its checkpoint: that, and nothing else, is too large.
        whole = (server / "checkpoint.npz").stat().st_size
        limit = whole // 2
        assert max((server / name).stat().st_size for name in ("events.jsonl", "status.json", "console.log")) < limit / 3
        resource.prlimit(local.server.pid, resource.RLIMIT_FSIZE, (limit, limit))
        assert ended(local.server, server / "console.log") == 1
        kept = checkpoint(folder)["done"]
        assert done + 2 <= kept < rounds and (server / "checkpoint.npz").stat().st_size > limit
        assert read_status(server)["state"] == "failed"
        (told,) = [line for line in (server / "console.log").read_text().splitlines() if line.startswith("Error: ")]
        for text in (told, events(folder)[-1]["text"]):
            assert "checkpoint.npz could not be written" in text and "Free some space" in text and "run again" in text
        assert not list(server.glob(".writing-*"))

        before = len(events(folder))
        local.start_server()
        local.wait()
        assert said(folder, f"Going on after round {kept}.") and len(events(folder)) > before
        assert local.exit_codes() == {"server": 0, "hospital 0": 0, "hospital 1": 0}
        assert {process.pid for process in local.hospitals.values()} == hospitals  # they came back by themselves
    assert_undisturbed(folder, rounds)


# --- the line ---


class Proxy:
    """A line between a hospital and the server that damages what the hospital sends, once each:

    a byte in the middle of the third large piece is changed, and some pieces later the line is cut in the middle of one.
    """

    LARGE, CHANGED_AT, CUT_AT = 4096, 3, 40

    def __init__(self, target: int):
        self.port, self._target, self.changed, self.cut = free_port(), target, 0, 0
        self._large, self._lock, self._open = 0, threading.Lock(), []
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()
        for one in self._open:
            one.close()

    def _accept(self):
        while True:
            try:
                hospital, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                hospital.close()
                continue
            self._open += [hospital, server]
            for source, sink, damages in ((hospital, server, True), (server, hospital, False)):
                threading.Thread(target=self._pass_on, args=(source, sink, damages), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, damages: bool):
        try:
            while content := source.recv(16_384):
                fault = self._fault(content) if damages else None
                if fault == "change":
                    middle = len(content) // 2
                    content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
                if fault == "cut":
                    sink.sendall(content[: len(content) // 2])
                    for one in (source, sink):  # at once, as when the line is torn
                        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                sink.sendall(content)
        except OSError:
            pass
        finally:
            for one in (source, sink):
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                one.close()

    def _fault(self, content: bytes) -> str | None:
        if len(content) < self.LARGE:
            return None
        with self._lock:
            self._large += 1
            self.changed += self._large == self.CHANGED_AT
            self.cut += self._large == self.CUT_AT
            return {self.CHANGED_AT: "change", self.CUT_AT: "cut"}.get(self._large)


def test_a_line_that_changes_a_byte_and_breaks_off_changes_no_bit_of_the_model(tmp_path):
    folder, rounds = tmp_path / "federation", 6
    federation = new_federation(
        folder, rounds=rounds, model="small_cnn", min_hospitals=2, max_void_rounds=100, round_timeout_s=20.0,
    )
    with Proxy(federation.host_and_port[1]) as proxy:
        # Only the address differs, which belongs to nobody's agreement: a hospital may be behind a gateway.
        write_federation(folder / "hospital_1", federation.model_copy(update={"address": f"127.0.0.1:{proxy.port}"}))
        assert read_federation(folder / "hospital_1").fingerprint == federation.fingerprint
        with Local(folder) as local:
            local.wait()
            assert local.exit_codes() == {"server": 0, "hospital 0": 0, "hospital 1": 0}
        assert (proxy.changed, proxy.cut) == (1, 1)
    joined = [(folder / f"hospital_{hospital}" / "console.log").read_text().count("Joined.") for hospital in (0, 1)]
    assert joined[0] == 1 and joined[1] >= 3, joined  # it came again after each fault
    assert_undisturbed(folder, rounds)


# --- who does not belong there ---


def test_intruders_are_refused_with_the_reason_and_the_training_goes_on(tmp_path):
    folder, rounds = tmp_path / "federation", 4
    federation = new_federation(folder, rounds=rounds, min_hospitals=2, max_void_rounds=100)
    credentials.make_authority(tmp_path / "other_authority")
    reasons = {}

    def intruder(name: str, hospital: int, reason: str) -> Path:
        """A copy of what a hospital has; what is wrong with it is put in by the caller."""
        reasons[name] = hospital, reason
        own = tmp_path / name / f"hospital_{hospital}"
        shutil.copytree(folder / f"hospital_{hospital}", own)
        return own

    unknown = intruder("unknown_key", 1, "does not know this key")
    for name in ("key", "key.pub"):
        (unknown / name).unlink()
    credentials.make_hospital_key(unknown)
    shutil.copyfile(tmp_path / "other_authority" / "ca.crt", intruder("other_authority_s", 1, "another authority") / "ca.crt")
    (intruder("no_key", 1, "There is no ") / "key").unlink()
    intruder("second_process", 0, "Another process takes part as hospital 0")
    with Local(folder, hospitals=[0]) as local, commands() as start:
        wait_for_event(folder, "1 of 2 hospitals joined")
        logs = {name: tmp_path / f"{name}.log" for name in reasons}
        processes = {
            name: start(typed("client", hospital, "--folder", tmp_path / name), logs[name]) for name, (hospital, _) in reasons.items()
        }
        assert_refused_without_a_known_key(folder, federation.address, unknown)
        for name, process in processes.items():
            assert ended(process, logs[name]) == 1
            words = logs[name].read_text().strip().splitlines()[-1]
            assert words.startswith("Error: ") and reasons[name][1] in words, words
            assert "Traceback" not in logs[name].read_text()
        assert local.exit_codes() == {"server": None, "hospital 0": None}
        local.start_hospital(1)
        wait_for_event(folder, f"Round 1 of {rounds}")
        assert_refused_without_a_known_key(folder, federation.address, unknown)
        local.wait()
        assert local.exit_codes() == {"server": 0, "hospital 0": 0, "hospital 1": 0}
    assert [event["hospital"] for event in events(folder) if event["text"] == "joined."] == [0, 1]
    assert not said(folder, "cannot take part") and not said(folder, "is back")
    assert not any((tmp_path / name / f"hospital_{hospital}" / "model.npz").exists() for name, (hospital, _) in reasons.items())
    assert_undisturbed(folder, rounds)


def assert_refused_without_a_known_key(folder: Path, address: str, stranger: Path) -> None:
    """Every call of Flower's Fleet API in the name of hospital 0: without a key, with a stranger's, and without TLS."""
    authority = grpc.ssl_channel_credentials((folder / "hospital_0" / "ca.crt").read_bytes())
    public, strange = (credentials.load_public_key(own / "key.pub") for own in (folder / "hospital_0", stranger))
    with grpc.secure_channel(address, authority) as channel:
        nobody = FleetStub(channel)
        somebody, known = (
            FleetStub(grpc.intercept_channel(channel, NodeAuthClientInterceptor(*credentials.load_hospital_key(own))))
            for own in (stranger, folder / "hospital_0")
        )
        # Flower's number of the hospital, which it tells to who has its key; nobody is refused for a wrong number here.
        number = int(re.search(r"node ID (\d+)", refusal(known, "ActivateNode", activation(public)).details())[1])
        node = Node(node_id=number)
        requests = {
            "RegisterNode": fleet_pb2.RegisterNodeFleetRequest(public_key=public), "ActivateNode": activation(public),
            "DeactivateNode": fleet_pb2.DeactivateNodeRequest(node_id=number),
            "UnregisterNode": fleet_pb2.UnregisterNodeFleetRequest(node_id=number),
            "SendNodeHeartbeat": heartbeat_pb2.SendNodeHeartbeatRequest(node=node, heartbeat_interval=10.0),
            "PullMessages": fleet_pb2.PullMessagesRequest(node=node), "PushMessages": fleet_pb2.PushMessagesRequest(node=node),
            "GetRun": run_pb2.GetRunRequest(node=node, run_id=1), "GetFab": GetFabRequest(node=node, hash_str="0" * 64),
            "PushObject": message_pb2.PushObjectRequest(node=node), "PullObject": message_pb2.PullObjectRequest(node=node),
            "ConfirmMessageReceived": message_pb2.ConfirmMessageReceivedRequest(node=node),
        }
        assert set(requests) == {name for name in vars(nobody) if not name.startswith("_")}
        for stub in (nobody, somebody):
            for name, request in requests.items():
                assert refusal(stub, name, request).code() == grpc.StatusCode.UNAUTHENTICATED, name
        # Nor can it make itself known.
        assert refusal(somebody, "ActivateNode", activation(strange)).code() == grpc.StatusCode.FAILED_PRECONDITION
        registration = fleet_pb2.RegisterNodeFleetRequest(public_key=strange)
        assert refusal(somebody, "RegisterNode", registration).code() == grpc.StatusCode.FAILED_PRECONDITION
    with grpc.insecure_channel(address) as plain:
        assert refusal(FleetStub(plain), "PullMessages", requests["PullMessages"]).code() == grpc.StatusCode.UNAVAILABLE


def activation(public_key: bytes):
    return fleet_pb2.ActivateNodeRequest(public_key=public_key, heartbeat_interval=10.0)


def refusal(stub: FleetStub, name: str, request) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as refused:
        getattr(stub, name)(request, timeout=60.0)
    return refused.value


def test_an_expired_certificate_stops_the_server_and_its_hospitals(tmp_path):
    folder = tmp_path / "federation"
    federation = new_federation(folder)
    server, begin = folder / "server", datetime.now(UTC) - timedelta(days=400)
    for name in ("server.key", "server.crt"):
        (server / name).unlink()
    credentials.make_server_certificate(folder / "authority", server, hosts=["127.0.0.1"], days=30, not_before=begin)
    reason = f"expired on {begin + timedelta(days=30):%Y-%m-%d}"
    with commands() as start:
        log = tmp_path / "server.log"
        assert ended(start(typed("server", "--folder", folder), log), log) == 1
        assert log.read_text().startswith("Error: ") and reason in log.read_text()
        # One that is started all the same, by other means.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server / "server.crt", server / "server.key")
        context.set_alpn_protocols(["h2"])
        with socket.create_server(federation.host_and_port) as listener:
            threading.Thread(target=shake_hands, args=(listener, context), daemon=True).start()
            log = tmp_path / "client.log"
            assert ended(start(typed("client", 0, "--folder", folder), log), log) == 1
        assert log.read_text().startswith("Error: ") and reason in log.read_text()
        assert not (folder / "hospital_0" / "sent.jsonl").exists()


def shake_hands(listener: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        try:
            context.wrap_socket(plain, server_side=True).close()
        except OSError:
            plain.close()


# --- interrupted ---

PROGRAM = """
import sys
from pathlib import Path
from fl_utils.deployment.flower import Local

with Local(Path(sys.argv[1])) as federation:
    federation.wait()
"""


@pytest.fixture(scope="module")
def endless(folders):
    """A federation whose training does not end before it is interrupted; the next test goes on with it."""
    folder = folders / "endless"
    new_federation(folder, rounds=100_000)
    return folder


def trains_on(folder: Path, since: int) -> None:
    """Waits until two rounds are done since then."""
    place = wait_for_event(folder, " of 100000: ", since=since)
    wait_for_event(folder, " of 100000: ", since=place)
    assert len(left_over(folder)) >= 4  # server, SuperLink, two hospitals


@pytest.mark.parametrize("command, number, code", [
    ("program", signal.SIGKILL, -signal.SIGKILL), ("program", signal.SIGINT, -signal.SIGINT), ("up", signal.SIGTERM, 143),
], ids=["program_killed", "program_interrupted", "up_terminated"])
def test_no_process_is_left_of_an_interrupted_federation(command, number, code, endless, tmp_path):
    log, since = tmp_path / "log", len(events(endless))
    with commands() as start:
        line = [sys.executable, "-c", PROGRAM, str(endless)] if command == "program" else typed("federation", "up", "--folder", endless)
        process = start(line, log)
        trains_on(endless, since)
        process.send_signal(number)
        assert ended(process, log) == code, log.read_text()
        if number != signal.SIGKILL:  # who can, asks the others to end, and waits for them
            assert not left_over(endless)
            assert read_status(endless / "server")["state"] == "stopped"
        else:  # the kernel ends them
            wait_until(lambda: not left_over(endless), "the end of the processes", endless)
            wait_until(lambda: read_status(endless / "server")["state"] == "gone", "the end of the server", endless)


def test_a_detached_federation_is_shown_and_put_down(endless, tmp_path):
    since = len(events(endless))

    def run(name: str, *options: str) -> str:
        log = tmp_path / f"{name}.log"
        with commands() as start:
            assert ended(start(typed("federation", name, "--folder", endless, *options), log), log) == 0, log.read_text()
        return log.read_text()

    try:
        assert "Running." in run("up", "--detach")
        trains_on(endless, since)
        running = set(left_over(endless))
        assert "training" in run("status") and "joined" in run("status")
        with commands() as start:  # a second one is refused
            log = tmp_path / "second.log"
            assert ended(start(typed("federation", "up", "--folder", endless), log), log) == 1
            assert "End it first" in log.read_text()
        assert running == set(left_over(endless)), last_words(endless)
        assert "3 processes ended." in run("down")
        assert not left_over(endless)
        assert "stopped" in run("status")
        assert "0 processes ended." in run("down")
    finally:
        put_down(endless)
