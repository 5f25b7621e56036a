"""Flower's SuperLink as a child of the server's process, and the run on it that the messages belong to."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import Status, SubStatus
from flwr.common.grpc import create_channel
from flwr.common.heartbeat import HeartbeatSender, get_grpc_app_heartbeat_fn
from flwr.common.serde import fab_to_proto, run_status_to_proto
from flwr.common.typing import Fab, RunStatus
from flwr.proto.appio_pb2 import PullAppInputsRequest, RequestTokenRequest
from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest
from flwr.proto.control_pb2_grpc import ControlStub
from flwr.proto.run_pb2 import UpdateRunStatusRequest
from flwr.server.grid.grpc_grid import GrpcGrid

from fl_utils.children import free_addresses, owned_python
from fl_utils.deployment.flower import credentials
from fl_utils.deployment.flower.settings import Federation, FederationError

LOG = "superlink.log"
_APP = Path(__file__).with_name("app")
_START_S = 60.0
_PROGRAM = (
    # Flower loads these where they are installed, for what a SuperLink does not do: 5 seconds and 400 MB.
    "sys.modules |= {'ray': None, 'tensorflow': None}\n"
    "from flwr.server.app import run_superlink; run_superlink()"
)


@contextlib.contextmanager
def superlink(federation: Federation, folder: Path) -> Iterator[tuple[str, str]]:
    """Runs a SuperLink while the block lasts; hospitals reach it at the federation's address, by TLS and a known key.

    What only this machine needs listens on loopback. Its state is in memory: no update lies on the server's disk.

    Args:
      federation: what was agreed on.
      folder: the server's, with its certificate; gets the SuperLink's log.
    Yields:
      Addresses of its control API and of its API for servers' programs.
    Raises:
      FederationError: it does not start; the text has its last words.
    """
    control, inner = free_addresses(2)
    _refuse_taken(federation)
    secured = [
        "--ssl-ca-certfile", folder / "ca.crt", "--ssl-certfile", folder / "server.crt", "--ssl-keyfile", folder / "server.key",
        "--enable-supernode-auth",
    ]
    arguments = [
        *(secured if federation.transport == "tls" else ["--insecure"]), "--isolation", "process",
        "--fleet-api-address", federation.address, "--control-api-address", control, "--serverappio-api-address", inner, "--storage-dir", folder / "flower" / "ffs",
    ]
    environment = os.environ | {"FLWR_HOME": str(folder / "flower"), "FLWR_LOG_LEVEL": "WARNING"}
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            [*owned_python(_PROGRAM), *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )
    try:
        _wait_until_up(process, (control, inner, federation.address), folder / LOG)
        yield control, inner
    finally:
        process.terminate()
        try:
            process.wait(1.0)  # Flower waits five seconds for calls to end; by now there is none that counts
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def running(federation: Federation, folder: Path, control: str, inner: str) -> Iterator[tuple[GrpcGrid, dict[int, int]]]:
    """Makes the hospitals' keys known and starts a run.

    Yields:
      Flower's Grid, and Flower's id of each hospital.
    Raises:
      CredentialError: a hospital's public key cannot be used.
    """
    authority = (folder / "ca.crt").read_bytes() if federation.transport == "tls" else None
    channel = create_channel(control, insecure=authority is None, root_certificates=authority)
    stub = ControlStub(channel)
    try:
        nodes = {}
        for hospital in range(federation.config.num_clients):
            public = credentials.load_public_key(folder / "hospitals" / f"{hospital}.pub")
            nodes[hospital] = stub.RegisterNode(RegisterNodeRequest(public_key=public), timeout=30.0).node_id
        content = build_fab_from_disk(_APP)
        run_id = stub.StartRun(StartRunRequest(fab=fab_to_proto(Fab("", content, {}))), timeout=30.0).run_id
    except grpc.RpcError as error:
        raise FederationError(f"Flower's SuperLink does not take the hospitals' keys or the run: {error.details()}.") from None
    finally:
        channel.close()
    grid = GrpcGrid(serverappio_service_address=inner)
    heartbeat = None
    try:
        api = grid._stub  # noqa: SLF001 (as Flower's own server program does)
        token = api.RequestToken(RequestTokenRequest(run_id=run_id)).token
        api.PullAppInputs(PullAppInputsRequest(token=token))
        _tell(api, run_id, RunStatus(Status.RUNNING, "", ""))
        grid.set_run(run_id)
        heartbeat = HeartbeatSender(get_grpc_app_heartbeat_fn(api, run_id, failure_message="The SuperLink forgot the run."))
        heartbeat.start()
        yield grid, nodes
        _tell(api, run_id, RunStatus(Status.FINISHED, SubStatus.COMPLETED, ""))
    finally:
        if heartbeat is not None:
            heartbeat.stop()
        grid.close()


def _tell(api, run_id: int, status: RunStatus) -> None:
    api.UpdateRunStatus(UpdateRunStatusRequest(run_id=run_id, run_status=run_status_to_proto(status)))


def _refuse_taken(federation: Federation) -> None:
    host, port = federation.host_and_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    end = time.monotonic() + 10.0  # a server that was just killed may hold it a moment longer
    while True:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                return probe.bind((host, port))
            except OSError as error:
                if time.monotonic() > end:
                    raise FederationError(
                        f"The server cannot listen at {federation.address}: {error.strerror}. Give `federation init` another --address, "
                        "one of this machine and not in use."
                    ) from None
        time.sleep(0.2)


def _wait_until_up(process: subprocess.Popen, addresses, log: Path) -> None:
    end = time.monotonic() + _START_S
    for address in addresses:
        host, _, port = address.rpartition(":")
        while True:
            try:
                socket.create_connection((host.strip("[]").replace("0.0.0.0", "127.0.0.1"), int(port)), 1.0).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    words = log.read_text(errors="replace").strip().splitlines()[-5:]
                    raise FederationError("Flower's SuperLink did not start: " + " / ".join(words)) from None
                time.sleep(0.1)
