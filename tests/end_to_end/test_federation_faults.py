"""Hospitals of a real federation that send nonsense, are killed, hang, come late or are refused, each a process.

What the server says it did is held against what it did: the final weights are computed again in this process from
exactly the updates that its events list.
"""

import signal

from fl_utils.deployment.flower import read_federation, read_journal
from fl_utils.deployment.flower.settings import write_federation
from tests.end_to_end.federation_faults_helpers import (
    FAULTS, HEARTBEAT, LIMIT_S, RECORD, SPOIL, STOP, Obedient, Reference, await_, checkpoint_of, counted_after, distance,
    first_round_after, is_stopped, new_federation, order, pieces, recorded, rounds_of, said_of, said_since, sent_by, start_client,
    used_updates, whole_events,
)

#: Server and reference add the same float32 updates in float64; only the order of the sum may differ.
SAME = 1e-6


def test_a_bad_a_killed_and_a_hanging_hospital_are_named_and_left_out_and_count_again_when_they_are_back(folders):
    folder = folders / "faults"
    new_federation(folder, hospitals=4, min_hospitals=2, round_timeout_s=8.0, max_void_rounds=100)
    order(folder, 3, SPOIL)
    order(folder, 1, HEARTBEAT, "60")  # Flower takes it for there while it hangs, so that its late answer does arrive
    with Obedient(folder) as federation:
        await_(lambda: len(said_of(folder, 3, "left out of round")) == len(FAULTS), "each fault named", federation)
        named = said_of(folder, 3, "left out of round")
        await_(lambda: counted_after(folder, 3, named[-1]), "hospital 3 counts when it is honest", federation)

        order(folder, 2, STOP, "1")
        await_(lambda: is_stopped(federation.hospitals[2]), "hospital 2 in the middle of its training", federation)
        federation.kill_hospital(2)
        mark = whole_events(folder)[-1]
        killed = await_(lambda: said_since(folder, mark, 2, "did not answer round", "is gone; no update in round"),
                        "the killed hospital named", federation)[0]
        await_(lambda: len(counted_after(folder, 0, killed)) >= 2, "rounds without the killed hospital", federation)
        federation.start_hospital(2)
        again = await_(lambda: said_since(folder, killed, 2, "is back.", "was started again."),
                       "the killed hospital back", federation)[0]
        await_(lambda: counted_after(folder, 2, again), "the killed hospital counts again", federation)

        order(folder, 1, STOP, "1")
        await_(lambda: is_stopped(federation.hospitals[1]), "hospital 1 in the middle of its training", federation)
        mark = whole_events(folder)[-1]
        hung = await_(lambda: said_since(folder, mark, 1, "did not answer round"), "the hanging hospital named", federation)[0]
        await_(lambda: len(counted_after(folder, 0, hung)) >= 2, "rounds without the hanging hospital", federation)
        federation.hospitals[1].send_signal(signal.SIGCONT)
        late = await_(lambda: said_since(folder, hung, 1, "too late"), "the late answer", federation)[0]
        back = await_(lambda: said_since(folder, hung, 1, "is back."), "the hanging hospital back", federation)[0]
        await_(lambda: counted_after(folder, 1, back), "the hanging hospital counts again", federation)
    for fault, event, reason in zip(FAULTS, named, REASONS, strict=True):
        assert reason in event["text"], (fault, event)
        assert 3 not in first_round_after(folder, event).get("hospitals", ()), event
    events = whole_events(folder)
    for hospital, gone, there in ((2, killed, again), (1, hung, back)):
        absent = events[events.index(gone) : events.index(there)]
        assert [event for event in absent if "hospitals" in event], "there were rounds meanwhile"
        assert not [event for event in absent if hospital in event.get("hospitals", ())]
    assert not said_since(folder, killed, 2, "too late"), "nobody says that the dead answered"
    number = int(hung["text"].split()[4])
    assert late["text"] == f"answered round {number} too late; not used."
    assert str(number) in [line["round"] for line in read_journal(folder / "hospital_1")], "it did answer"

    done, weights = checkpoint_of(folder)
    used, reference = used_updates(folder), Reference(folder)
    assert len(used) == done and 1 not in used[number - 1]
    assert distance(weights, reference.after(used)) < SAME
    with_late = [*used[: number - 1], [*used[number - 1], 1], *used[number:]]
    assert distance(weights, reference.after(with_late)) > 10 * SAME, "it would show"


REASONS = (
    "array 0 of shape (576, 4) holds 2304 numbers that are not finite",
    "array 0 is float32 (575, 4), the model's is float32 (576, 4)",
    "array 0 is int32 (576, 4), the model's is float32 (576, 4)",
    "examples, and said",
    "its training loss is nan",
)


def test_a_hospital_that_starts_when_rounds_are_done_joins_and_counts_from_then_on(folders):
    folder = folders / "late"
    new_federation(folder, hospitals=3, min_hospitals=2, join_timeout_s=0.5)
    with Obedient(folder, hospitals=[0, 1]) as federation:
        await_(lambda: 2 in rounds_of(folder), "round 2", federation)
        federation.start_hospital(2)
        joined = await_(lambda: said_of(folder, 2, "joined."), "hospital 2 joined", federation)[0]
        await_(lambda: len(counted_after(folder, 2, joined)) >= 3, "its updates", federation)
    done, weights = checkpoint_of(folder)
    used = used_updates(folder)
    first = next(place for place, who in enumerate(used) if 2 in who)
    assert first >= 2 and used == [[0, 1]] * first + [[0, 1, 2]] * (done - first)
    begun = first_round_after(folder, joined)["round"]  # it may have joined while this round was on
    assert first + 1 in (begun, begun + 1)
    # The weights of the classes are those of the images of hospitals 0 and 1, from the first round to the last.
    assert distance(weights, Reference(folder, planned_for=[0, 1]).after(used)) < SAME
    assert distance(weights, Reference(folder, planned_for=[0, 1]).after([[0, 1]] * done)) > 10 * SAME


def test_too_few_hospitals_change_nothing_stop_the_server_and_the_training_goes_on_when_they_are_back(folders):
    folder, rounds = folders / "few", 6
    new_federation(folder, hospitals=3, total_rounds=rounds, min_hospitals=3, max_void_rounds=2, round_timeout_s=8.0)
    order(folder, 1, STOP, "4")
    with Obedient(folder) as federation:
        await_(lambda: is_stopped(federation.hospitals[1]), "hospital 1 in the training of round 4", federation)
        federation.kill_hospital(1)
        done, before = checkpoint_of(folder)
        assert done == 3
        assert federation.server.wait(LIMIT_S) == 1
        console = (folder / "server" / "console.log").read_text()
        void = [event["text"] for event in whole_events(folder) if "no new model" in event["text"]]
        assert void == ["Round 4: no new model: 2 updates, 3 are needed."] * 2
        last = federation.last_words(folder / "server")
        assert last == (
            "Error: 2 rounds in a row had fewer than 3 updates; the training stops with the model of round 3. Start the server "
            "again when more hospitals are there: it goes on."
        ), console
        assert federation.status()["state"] == "failed"
        done, after = checkpoint_of(folder)
        assert done == 3 and distance(before, after) == 0
        assert [federation.hospitals[hospital].poll() for hospital in (0, 2)] == [None, None], "they wait for the server"

        federation.start_server()
        federation.start_hospital(1)
        assert federation.wait(timeout_s=LIMIT_S)["state"] == "finished"
        assert federation.exit_codes() == {"server": 0, "hospital 0": 0, "hospital 1": 0, "hospital 2": 0}
    reference = Reference(folder)
    undisturbed = reference.after([[0, 1, 2]] * rounds)
    assert distance(before, reference.after([[0, 1, 2]] * 3)) < SAME
    assert checkpoint_of(folder)[0] == rounds and distance(checkpoint_of(folder)[1], undisturbed) < SAME
    assert distance(before, undisturbed) > 10 * SAME


def test_a_hospital_without_its_log_sends_nothing_and_strangers_are_refused_by_name(folders):
    folder = folders / "refused"
    # Without weights of the classes, which depend on who has joined when the training is planned.
    federation_file = new_federation(
        folder, hospitals=4, class_weighting=False, min_hospitals=1, join_timeout_s=0.5, round_timeout_s=120.0,
        max_void_rounds=1000,  # the one without a log may be alone for a while
    )
    (folder / "hospital_2" / "sent.jsonl").mkdir()
    config = federation_file.config.model_copy(update={"client_learning_rate": 0.06})
    write_federation(folder / "hospital_3", federation_file.model_copy(update={"config": config}))
    assert read_federation(folder / "hospital_3").fingerprint != federation_file.fingerprint
    for hospital in (0, 2):
        order(folder, hospital, RECORD)
    with Obedient(folder, hospitals=[]) as federation:
        for hospital in (0, 2):
            federation.start_hospital(hospital, "--keep-sent", str(folder / f"sent_{hospital}"))
        federation.start_hospital(3)
        # The program is told number 0, and given the folder of hospital 1, alone.
        impostor = start_client(folder, 0, client_folder=folder / "hospital_1")
        federation.hospitals[1] = impostor
        unwritten = await_(lambda: said_of(folder, 2, "left out of round"), "the hospital without a log named", federation)[0]
        other = await_(lambda: said_of(folder, 3, "cannot take part"), "the hospital of another agreement named", federation)[0]
        wrong = await_(lambda: said_of(folder, 1, "cannot take part"), "the hospital of another number named", federation)[0]
        await_(lambda: len(counted_after(folder, 0, wrong)) >= 2, "the others go on", federation)
        assert {rounds_of(folder)[number] == [0] for number in rounds_of(folder)} == {True}
        assert impostor.wait(LIMIT_S) == federation.hospitals.pop(3).wait(LIMIT_S) == 1
        told = federation.last_words(folder / "hospital_3")
        federation.start_hospital(1)  # with the right number for this key it is welcome
        joined = await_(lambda: said_of(folder, 1, "joined."), "hospital 1 under its own number", federation)[0]
        await_(lambda: counted_after(folder, 1, joined), "its updates", federation)
    assert "The log of what is sent, sent.jsonl, cannot be written (Is a directory); so nothing is sent." in unwritten["text"]
    assert "its federation.json differs from the server's (fingerprints" in other["text"]
    assert "does not take hospital 3 in: its federation.json differs" in told
    assert "its key is that of hospital 1, and it says that it is hospital 0" in wrong["text"]
    refused = [len(said_of(folder, hospital, "cannot take part")) for hospital in range(4)]
    assert refused == [0, 1, 0, 1], "said once, not each round"

    done, weights = checkpoint_of(folder)
    used = used_updates(folder)
    assert not [who for who in used if 2 in who or 3 in who]
    computed = {hospital: recorded(folder, hospital) for hospital in (0, 2)}
    for hospital, leaves in ((0, True), (2, False)):
        sent = b"".join(sent_by(folder / f"sent_{hospital}"))
        update = pieces(computed[hospital][min(computed[hospital])]["delta"])
        assert len(update) > 100 and {piece in sent for piece in update} == {leaves}, hospital
    assert distance(weights, Reference(folder).after(used)) < SAME
