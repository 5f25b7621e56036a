"""The server and the hospitals on different machines, as far as the kernel can make them of one: network namespaces."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.end_to_end.federation_faults_helpers import (
    LIMIT_S, Obedient, Reference, await_, checkpoint_of, distance, free_port, new_federation, start, start_client, used_updates,
    whole_events,
)

SERVER, HOSPITALS = "10.203.17.1", "10.203.17.2"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def machines():
    """Commands to put in front of what is to run on the server's and on the hospitals' machine; a cable joins the two."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    names = {SERVER: f"fl{os.getpid()}s", HOSPITALS: f"fl{os.getpid()}h"}
    try:
        try:
            for name in names.values():
                ip("netns", "add", name)
            ip("-n", names[SERVER], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[HOSPITALS])
            for address, name in names.items():
                ip("-n", name, "address", "add", f"{address}/30", "dev", "cable")
                for device in ("cable", "lo"):
                    ip("-n", name, "link", "set", device, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        yield [["ip", "netns", "exec", name] for name in names.values()]
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
        assert not [name for name in names.values() if name in left]


def can_connect(within: list[str], host: str, port: int) -> bool:
    """Whether a process there reaches this port."""
    program = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"
    return subprocess.run([*within, sys.executable, "-c", program, host, str(port)], capture_output=True).returncode == 0


def test_server_and_hospitals_on_two_machines_train_and_nobody_else_reaches_the_server(folders, machines):
    on_server, on_hospitals = machines
    folder, rounds, port = folders / "network", 3, free_port()
    new_federation(folder, hospitals=2, total_rounds=rounds, address=f"{SERVER}:{port}", min_hospitals=2)
    federation = Obedient(folder)
    try:
        federation.server = start(["server", "--folder", str(folder)], folder / "server", on_server)
        await_(lambda: [event for event in whole_events(folder) if "Listening at" in event["text"]], "it listens", federation)
        assert can_connect(on_hospitals, SERVER, port), "by the cable"
        assert not can_connect([], "127.0.0.1", port), "a process outside, by loopback"
        assert not can_connect(on_hospitals, "127.0.0.1", port)
        assert not can_connect(on_server, "127.0.0.1", port), "it listens at the named address alone"
        for hospital in (0, 1):
            # What a hospital is given: its own folder, and nothing else of the federation.
            alone = folders / f"network_hospital_{hospital}"
            shutil.copytree(folder / f"hospital_{hospital}", alone)
            federation.hospitals[hospital] = start_client(folder, hospital, client_folder=alone, within=on_hospitals)
        assert federation.server.wait(LIMIT_S) == 0
        assert [federation.hospitals[hospital].wait(LIMIT_S) for hospital in (0, 1)] == [0, 0]
    finally:
        federation.down()
    done, weights = checkpoint_of(folder)
    assert done == rounds and used_updates(folder) == [[0, 1]] * rounds
    assert distance(weights, Reference(folder).after([[0, 1]] * rounds)) < 1e-6
    assert all((folders / f"network_hospital_{hospital}" / "model.npz").is_file() for hospital in (0, 1))
