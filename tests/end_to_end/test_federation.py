"""The real federation computes what the simulation and a reference in NumPy compute, sends the update and nothing else,
and keeps to its privacy budget. Each server and hospital is a process of its own, and they talk over TLS on loopback.

Tolerance: hospitals and simulation run the same TensorFlow kernels, so what they send agrees to the last bit; the server adds in
float64 where TFF adds in float32, which over three rounds leaves differences near 1e-8 (weights are below 1). AGREE is
far above that, and far below what a wrong weight of a hospital, a lost momentum or another order of batches would do (1e-3).
"""

import csv
import hashlib
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from flwr.common import Message, RecordDict
from flwr.common.inflatable import get_all_nested_objects, iterate_object_tree
from flwr.proto import fleet_pb2, message_pb2
from PIL import Image

from fl_utils.data.decode import decode_image
from fl_utils.deployment.flower import Local, read_federation, read_journal, read_status
from fl_utils.deployment.flower.messages import content_of
from fl_utils.trust.budget import PrivacyBudget, PrivacyBudgetExceeded
from fl_utils.trust.noise import planned_noise
from fl_utils.trust.terms import PrivacyTerms
from tests.end_to_end.federation_helpers import (
    commands, contributions, distance, ended, events, final_weights, initial_weights, model_in, new_federation, reference,
    same_bits, typed, wait_for_event, wait_until,
)

AGREE = 1e-5
ROUNDS = 3
pytestmark = pytest.mark.usefixtures("folders")


# --- the same numbers ---


def test_typed_as_a_user_would_and_equal_to_the_simulation_and_to_numpy(tmp_path):
    folder = tmp_path / "federation"
    federation = new_federation(folder, hospitals=4, rounds=ROUNDS)
    logs = {name: tmp_path / f"{name}.log" for name in ("server", 0, 1, 2, 3)}
    with commands() as start:
        processes = {"server": start(typed("server", "--folder", folder), logs["server"])}
        for hospital in range(3):
            processes[hospital] = start(typed("client", hospital, "--folder", folder), logs[hospital])
        wait_for_event(folder, "3 of 4 hospitals joined")
        status = start(typed("federation", "status", "--folder", folder), tmp_path / "status.log")
        assert ended(status, tmp_path / "status.log") == 0
        assert "3 of 4 hospitals joined" in (tmp_path / "status.log").read_text()
        # Whoever came first waits: a model of three hospitals would be another.
        assert not [event for event in events(folder) if "round" in event] and read_status(folder / "server")["round"] == 0
        assert not any(read_journal(folder / f"hospital_{hospital}") for hospital in range(3))
        processes[3] = start(typed("client", 3, "--folder", folder), logs[3])
        codes = {name: ended(process, logs[name]) for name, process in processes.items()}
    assert codes == dict.fromkeys(processes, 0), {name: log.read_text()[-500:] for name, log in logs.items()}
    assert contributions(folder) == [[0, 1, 2, 3]] * ROUNDS
    published = model_in(folder / "server")
    for hospital in range(4):
        assert same_bits(model_in(folder / f"hospital_{hospital}"), published)

    flower, start_weights = final_weights(folder), initial_weights(federation)
    simulated, by_hand = in_tff(federation.config), in_numpy(federation.config, start_weights)
    print(f"Flower-TFF {distance(flower, simulated):.1e}, Flower-NumPy {distance(flower, by_hand):.1e}, "
          f"TFF-NumPy {distance(simulated, by_hand):.1e}, moved by {distance(flower, start_weights):.1e}")
    assert distance(flower, simulated) < AGREE
    assert distance(flower, by_hand) < AGREE
    assert distance(simulated, by_hand) < AGREE
    assert distance(flower, start_weights) > 1e-3
    # Weighted by examples, as hospitals of 10 to 30 images must be: counted alike they would give another model.
    assert distance(by_hand, in_numpy(federation.config, start_weights, alike=True)) > 10 * AGREE


@pytest.mark.parametrize("fields", [
    {"method": "fedprox", "proximal_strength": 0.1, "model": "small_cnn", "augment": True},
    {"method": "fedadam", "server_learning_rate": 0.01},
    {"aggregator": "coordinate_median"},
], ids=["fedprox", "fedadam", "coordinate_median"])
def test_other_methods_equal_the_simulation(fields, tmp_path):
    folder = tmp_path / "federation"
    federation = new_federation(folder, hospitals=3, rounds=ROUNDS, **fields)
    with Local(folder) as local:
        local.wait()
        assert local.exit_codes() == {"server": 0, "hospital 0": 0, "hospital 1": 0, "hospital 2": 0}
    flower, start_weights, simulated = final_weights(folder), initial_weights(federation), in_tff(federation.config)
    plain = reference(folder, [[0, 1, 2]] * ROUNDS)
    print(f"{fields}: Flower-simulation {distance(flower, simulated):.1e}, Flower-reference {distance(flower, plain):.1e}, "
          f"moved by {distance(flower, start_weights):.1e}")
    assert distance(flower, simulated) < AGREE
    assert distance(flower, plain) < AGREE
    assert distance(flower, start_weights) > 1e-3
    if federation.config.aggregator:  # with a rule the last model is the published one
        assert same_bits(model_in(folder / "server"), flower)


def in_tff(config):
    """The weights after the last round of the simulation, which the notebooks run."""
    from fl_utils.experiments import training
    from fl_utils.experiments.hospitals import share_out
    from fl_utils.experiments.run import data_of

    dataset = data_of(config)
    learner = training.federated_learner(config, dataset, share_out(dataset, config))
    for round_num in range(1, config.total_rounds + 1):
        learner.do_round(round_num)
    return learner.weights()


def in_numpy(config, weights, *, alike=False):
    """FedAvg written out: gradients, steps and mean; only the order of the examples is the package's."""
    from fl_utils.experiments.hospitals import share_out
    from fl_utils.experiments.run import data_of
    from fl_utils.learning import reference as by_hand
    from fl_utils.learning.configured import local_settings
    from tests.equivalence import helpers

    assert config.seed == helpers.SEED  # the batches there are those of this seed
    dataset, settings = data_of(config), local_settings(config)
    parts = share_out(dataset, config).train
    sizes = [len(part) for part in parts]
    counts = np.bincount(dataset.labels[np.concatenate(parts)])
    weighting = sum(sizes) / (len(counts) * counts)
    for round_num in range(1, config.total_rounds + 1):
        deltas = [
            by_hand.client_update(
                weights, dataset.images[part], dataset.labels[part], helpers.batches_of(len(part), settings, client, round_num),
                weighting, settings.learning_rate, settings.momentum,
            )
            for client, part in enumerate(parts)
        ]
        weights = by_hand.federated_average(weights, deltas, [1] * len(sizes) if alike else sizes)
    return weights


# --- what leaves a hospital ---


def test_images_do_not_leave_a_hospital_and_the_log_has_every_update(tmp_path):
    folder, kept = tmp_path / "federation", tmp_path / "kept"
    federation = new_federation(folder, rounds=2, model="small_cnn", image_size_px=32)
    images = planted(folder / "hospital_0" / "data" / "train")
    with Local(folder, hospitals=[1]) as local:
        local.start_hospital(0, "--keep-sent", str(kept))
        local.wait()
        assert set(local.exit_codes().values()) == {0}
    calls = [(path.stem.split("_")[1], path.read_bytes()) for path in sorted(kept.iterdir())]
    sent = b"".join(content for _, content in calls)

    secret = pieces_of(images)
    assert holds(b"".join(decode_image(path, 32).tobytes() for path in images), secret)
    assert holds(images[0].read_bytes(), secret)
    for given in ("uint8", "float32"):  # the search finds what it looks for, in a message of the same kind
        assert holds(message_with(images, given), secret)
    assert not holds(sent, secret)
    assert b".png" not in sent  # nor a file's name

    # Each update as it was sent, by the hash that the log has of it.
    objects, updates = {}, {}
    for name, content in calls:
        if name == "PushObject":
            request = message_pb2.PushObjectRequest.FromString(content)
            assert hashlib.sha256(request.object_content).hexdigest() == request.object_id
            objects[request.object_id] = len(content)
        elif name == "PushMessages":
            request = fleet_pb2.PushMessagesRequest.FromString(content)
            for header, tree in zip(request.messages_list, request.message_object_trees, strict=True):
                if header.metadata.message_type == "train":
                    ids = {node.object_id for node in iterate_object_tree(tree)}
                    updates[header.metadata.group_id] = tree.object_id, len(content), ids
    log = [line for line in read_journal(folder / "hospital_0") if line["what"] == "train"]
    assert [(line["round"], line["message_sha256"]) for line in log] == [(number, updates[number][0]) for number in ("1", "2")]
    assert read_status(folder / "server")["hospitals"]["0"]["last_message"] == log[-1]["message_sha256"]

    model_bytes = 4 * sum(weight.size for weight in initial_weights(federation))
    assert model_bytes > 4 * 100_000
    for number, (_, header_bytes, ids) in updates.items():
        share = (header_bytes + sum(objects.pop(one) for one in ids)) / model_bytes
        print(f"round {number}: {share:.4f} of the model's size")
        assert 1.0 < share < 1.1
    # Nothing large beside them: polls and heartbeats come as often as they come, but none has room for an image.
    assert max(objects.values()) < 4000
    assert max(len(content) for name, content in calls if name in ("PullMessages", "SendNodeHeartbeat")) < 400
    rest = [content for name, content in calls if name not in ("PushObject", "PullMessages", "SendNodeHeartbeat")]
    assert sum(map(len, rest)) + sum(objects.values()) < 0.1 * model_bytes
    assert sum(len(content) for _, content in calls) >= sum(line["content_bytes"] for line in log)


def planted(train: Path) -> list[Path]:
    """Puts random bytes, which no update could give by chance, into a hospital's training images; returns the files."""
    rng, paths = np.random.default_rng(5), sorted(train.rglob("*.png"))
    for path in paths:
        pixels = decode_image(path, 32).copy()
        pixels[8:24] = rng.integers(1, 256, (16, 32), np.uint8)
        Image.fromarray(pixels).save(path)
        assert (decode_image(path, 32) == pixels).all()
    assert len(paths) > 10
    return paths


def pieces(content: bytes) -> list[bytes]:
    """Every run of 16 bytes: 16 pixels of a byte each, or 4 of float32."""
    return [content[at : at + 16] for at in range(len(content) - 15)]


def holds(content: bytes, secret: set[bytes]) -> bool:
    return not secret.isdisjoint(pieces(content))


def pieces_of(images: list[Path]) -> set[bytes]:
    """Of every row of the planted pattern, as bytes, as numbers from 0 to 1 and from 0 to 255; and of the files' ends."""
    rows = np.concatenate([decode_image(path, 32)[8:24] for path in images])
    forms = [rows, rows / np.float32(255), rows.astype(np.float32)]
    return {piece for form in forms for row in form for piece in pieces(row.tobytes())}.union(
        *(pieces(path.read_bytes()[-200:]) for path in images)
    )


def message_with(images: list[Path], given: str) -> bytes:
    """What a hospital would send that puts an image into its message."""
    pixels = decode_image(images[0], 32)
    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    answer = Message(content_of({}, [pixels if given == "uint8" else pixels / np.dtype(given).type(255)]), reply_to=message)
    return b"".join(part.deflate() for part in get_all_nested_objects(answer).values())


# --- the privacy budget ---


def test_a_killed_hospital_stays_charged_and_a_second_training_is_refused(tmp_path):
    folder = tmp_path / "federation"
    federation = new_federation(
        folder, rounds=8, min_hospitals=1, max_void_rounds=100, privacy_unit="patient", epsilon=4.0, delta=1e-3, clipping_norm=1.0,
    )
    rounds, steps = federation.config.total_rounds, steps_of(federation, folder)
    other, own = folder / "hospital_0", folder / "hospital_1"
    with Local(folder) as local:
        # A log that cannot be opened holds it where it has charged a round, and computed it, and not sent it.
        wait_until(lambda: read_journal(own), "the first update of hospital 1", folder)
        os.mkfifo(own / "blocking")
        (own / "sent.jsonl").rename(own / "sent")
        (own / "blocking").rename(own / "sent.jsonl")

        def died_in() -> int:
            number = len((own / "sent").read_text().splitlines()) + 1
            return number if charged(own) == number * steps and len(read_journal(other)) == number else 0

        wait_until(died_in, "a round that hospital 1 did not send", folder)
        time.sleep(1.0)  # for what was on its way: the other's update to the server, a line into the log that was exchanged
        number = wait_until(died_in, "a round that hospital 1 did not send", folder)
        # Both: the other one alone would do the remaining rounds before this one is back.
        local.kill_hospital(0)
        local.kill_hospital(1)
        (own / "sent").rename(own / "sent.jsonl")
        wait_for_event(folder, f"is gone; no update in round {number}", hospital=1)
        local.start_hospital(1)
        local.wait()
        assert local.exit_codes() == {"server": 0, "hospital 0": -signal.SIGKILL, "hospital 1": 0}
    sent = [int(line["round"]) for line in read_journal(own)]
    assert sent == [one for one in range(1, rounds + 1) if one != number]
    assert charged(own) == rounds * steps  # with the round that it never sent
    assert charged(other) == number * steps
    assert contributions(folder) == [[0, 1]] * (number - 1) + [[0]] + [[1]] * (rounds - number)
    assert 0.9 * 4.0 < PrivacyBudget.load(own / "privacy_budget.json").spent <= 4.0

    # The same training from its beginning: hospital 1 has nothing left for it, the other nothing after other uses of its data.
    budget = PrivacyBudget.load(other / "privacy_budget.json")
    (release,) = budget.state()["releases"]
    terms = PrivacyTerms("patient", release["delta"], steps, release["sampling"], release["rate"])
    with pytest.raises(PrivacyBudgetExceeded):
        while True:
            budget.charge(release["noise_multiplier"], terms)
    assert charged(other) == rounds * steps
    budgets = [(folder / f"hospital_{hospital}" / "privacy_budget.json").read_bytes() for hospital in (0, 1)]
    published = [folder / member / "model.npz" for member in ("server", "hospital_0", "hospital_1")]
    for path in (*published, folder / "server" / "checkpoint.npz"):
        path.unlink(missing_ok=True)
    before = len(events(folder))
    with Local(folder) as local:
        assert ended(local.server, folder / "server" / "console.log") == 1
        assert [code for name, code in local.exit_codes().items() if name != "server"] == [None, None]  # they wait for another
    refused = [event for event in events(folder)[before:] if "PrivacyBudgetExceeded" in event["text"]]
    assert {event["hospital"] for event in refused} == {0, 1}
    assert "0 updates" in "".join(event["text"] for event in events(folder)[before:])
    assert not any(path.exists() for path in published)
    assert budgets == [(folder / f"hospital_{hospital}" / "privacy_budget.json").read_bytes() for hospital in (0, 1)]


def charged(hospital: Path) -> int:
    """Noisy sums that a hospital's budget counts; the file is always whole."""
    path = hospital / "privacy_budget.json"
    return sum(release["steps"] for release in json.loads(path.read_text())["releases"]) if path.exists() else 0


def steps_of(federation, folder: Path) -> int:
    """Noisy sums of a round, as the plan for these hospitals has them."""
    patients = []
    for hospital in range(federation.config.num_clients):
        with (folder / f"hospital_{hospital}" / "data" / "patients.csv").open(newline="") as file:
            patients.append(len({row["patient"] for row in csv.DictReader(file) if row["file"].startswith("train/")}))
    assert read_federation(folder) == federation
    return planned_noise(federation.config, patients).steps_per_round
