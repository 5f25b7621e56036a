"""The audit log: what was written is there, whoever was killed; what was changed afterwards is found."""

import hashlib
import json
import random
import signal
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fl_utils import consortium_cli
from fl_utils.deployment.nvflare import audit
from fl_utils.deployment.nvflare.audit import AuditLog, read_log, verify_log
from tests.unit.made_governance import begin, kill_after, race


def new_log(folder, number=5):
    log = AuditLog(folder / "audit.jsonl")
    for one in range(number):
        log.write("run started", run=f"run {one}", epsilon=one / 3, outputs=["model_update"])
    return log


def heads(log):
    return [(entry["number"], entry["hash"]) for entry in read_log(log.path)]


def made_anew(entries):
    """Lines with right numbers and hashes for any entries: what somebody who knows how it is done would write."""
    lines, previous = [], "0" * 64
    for number, entry in enumerate(entries, 1):
        body = {k: v for k, v in entry.items() if k != "hash"} | {"number": number, "previous": previous}
        previous = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        lines.append(json.dumps(body | {"hash": previous}, sort_keys=True, separators=(",", ":")) + "\n")
    return "".join(lines)


def test_an_entry_holds_the_facts_and_the_hash_of_the_entry_before(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    assert log.head() == (0, "0" * 64)
    first = log.write("plan approved", by="owner", rounds=10, share=0.1, names=("Zoë", None))
    second = log.write("run started")
    assert (first["number"], first["previous"]) == (1, "0" * 64)
    assert second["number"] == 2 and second["previous"] == first["hash"]
    assert first["event"] == "plan approved" and first["names"] == ["Zoë", None] and first["share"] == 0.1
    assert first["time_utc"].endswith("Z") and len(first["time_utc"]) == 20
    assert read_log(log.path) == [first, second]
    assert log.head() == (2, second["hash"])
    assert made_anew([first, second]) == log.path.read_text()  # hashes as the interface says, worked out here
    assert verify_log(log.path, heads(log)) == []


def test_nobody_else_on_the_machine_reads_the_log(tmp_path):
    log = new_log(tmp_path, 1)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {"audit.jsonl": 0o600, "audit.head": 0o600}
    assert log.path.exists()


@pytest.mark.parametrize("facts", [{"x": {1, 2}}, {"x": float("nan")}, {"x": Path("a")}, {"hash": "0"}, {"previous": 1}, {"number": 7}, {"time_utc": ""}])
def test_facts_that_cannot_be_kept_are_refused_and_nothing_is_written(tmp_path, facts):
    log = new_log(tmp_path, 2)
    before = log.path.read_bytes()
    with pytest.raises(ValueError):
        log.write("x", **facts)
    assert log.path.read_bytes() == before and verify_log(log.path) == []


def test_there_is_nothing_to_verify_without_a_log(tmp_path):
    assert read_log(tmp_path / "audit.jsonl") == []
    assert verify_log(tmp_path / "audit.jsonl") == ["There is no log audit.jsonl."]


# --- what an ended process leaves behind ---


def test_half_a_line_is_cut_at_the_next_entry_and_told(tmp_path):
    """As after a kill: the entry before is the anchor's, and of the next one there are so many bytes."""
    log = new_log(tmp_path, 4)
    whole, anchor = log.path.read_bytes(), (tmp_path / "audit.head").read_bytes()
    log.write("budget charged", text="é" * 5)
    last = log.path.read_bytes()[len(whole) :]
    for length in range(1, len(last) - 1):
        log.path.write_bytes(whole + last[:length])
        (tmp_path / "audit.head").write_bytes(anchor)
        (problem,) = verify_log(log.path)
        assert f"{length} bytes are no whole line" in problem
        log.write("next")
        assert verify_log(log.path) == []
        told, added = read_log(log.path)[4:]
        assert (told["event"], told["cut_bytes"], told["cut"]) == (audit.REPAIRED, length, last[:length].decode())
        assert added["event"] == "next" and log.path.read_bytes().startswith(whole)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_whole_line_that_the_anchor_does_not_know_yet_is_kept(tmp_path, missing):
    """Killed after the line, before its end or before the anchor."""
    log = new_log(tmp_path, 4)
    anchor = (tmp_path / "audit.head").read_bytes()
    kept = log.write("budget charged")
    content = log.path.read_bytes()
    log.path.write_bytes(content[: len(content) - missing])
    (tmp_path / "audit.head").write_bytes(anchor)
    (problem,) = verify_log(log.path)
    assert ("no whole line" if missing else "Behind entry 4, the anchor's, stand 1 more") in problem
    log.write("next")
    assert verify_log(log.path) == [] and kept in read_log(log.path)
    told, added = read_log(log.path)[5:]
    assert told["event"] == audit.REPAIRED and told["written_after_anchor"] == 1 and added["event"] == "next"


@pytest.mark.parametrize("number", [0, 2, 3])
def test_an_anchor_that_was_left_behind_is_told_and_then_no_problem(tmp_path, number):
    """An older one was put back, or others added entries by themselves."""
    log = new_log(tmp_path, 5)
    known = [audit.START, *heads(log)][number]
    (tmp_path / "audit.head").write_text(f"{known[0]}:{known[1]}\n")
    assert f"stand {5 - number} more" in verify_log(log.path)[0]
    log.write("next")
    assert verify_log(log.path) == [] and read_log(log.path)[5]["written_after_anchor"] == 5 - number and len(read_log(log.path)) == 7


@pytest.mark.parametrize("broken", ["write_atomically", "_write_all"])
def test_a_full_disk_leaves_the_log_as_it_was(tmp_path, monkeypatch, broken):
    log = new_log(tmp_path, 3)
    before = log.path.read_bytes()

    def full(file, content=b"", *_):
        if broken == "_write_all":
            file.write(content[:20])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(audit, broken, full)
        log.write("lost")
    assert log.path.read_bytes() == before
    log.write("next")
    assert verify_log(log.path) == [] and [entry["event"] for entry in read_log(log.path)[3:]] == ["next"]


WRITER = """
from fl_utils.deployment.nvflare.audit import AuditLog
log = AuditLog(sys.argv[1] + "/audit.jsonl")
print("ready", flush=True)
sys.stdin.readline()
for number in range(40):
    log.write("written", writer=int(sys.argv[2]), which=number)
"""


def test_several_processes_write_one_chain(tmp_path):
    race(WRITER, [tmp_path], 3)
    entries = read_log(tmp_path / "audit.jsonl")
    assert verify_log(tmp_path / "audit.jsonl") == [] and len(entries) == 120
    for writer in range(3):
        assert [entry["which"] for entry in entries if entry["writer"] == writer] == list(range(40))


KILLED = """
from fl_utils.deployment.nvflare import audit
log, size, write_all = audit.AuditLog(sys.argv[1] + "/audit.jsonl"), int(sys.argv[2]), audit._write_all
def told(file, content):
    print("writing", flush=True)
    write_all(file, content)
if size > 1000:
    audit._write_all = told
while True:
    entry = log.write("written", text="x" * size)
    print(entry["number"], entry["hash"], flush=True)
"""


def test_a_killed_process_loses_no_entry_whose_write_returned(tmp_path):
    choose, path, returned = random.Random(0), tmp_path / "audit.jsonl", []
    for _ in range(25):
        process = begin(KILLED, tmp_path, 10)
        said = kill_after(process, choose.randint(1, 40), choose.random() * 0.003)
        assert process.returncode == -signal.SIGKILL
        returned += [(int(number), seal) for number, seal in map(str.split, said)]
        assert all("a process was ended while it wrote" in problem for problem in verify_log(path, returned))
    AuditLog(path).write("after the last kill")
    assert verify_log(path, returned) == [] and len(returned) > 25


def test_a_process_killed_in_the_middle_of_a_line_loses_none_either(tmp_path):
    """Lines so long that a kill while one is written leaves a part of it."""
    choose, path, returned, halves = random.Random(1), tmp_path / "audit.jsonl", [], 0
    for lines in (1, 1, 3, 1, 3, 1):  # "writing", or "writing", number and hash, "writing"
        process = begin(KILLED, tmp_path, 8_000_000)
        said = kill_after(process, lines, choose.random() * 0.004)
        returned += [(int(line.split()[0]), line.split()[1]) for line in said if line != "writing"]
        problems = verify_log(path, returned)
        assert all("a process was ended while it wrote" in problem for problem in problems)
        AuditLog(path).write("after the kill")
        told = [entry["event"] for entry in read_log(path)[-2:]].count(audit.REPAIRED)
        assert verify_log(path, returned) == [] and told == len(problems)
        returned.append(AuditLog(path).head())
        halves += told
    print(f"{halves} of 6 kills left half a line")


# --- what somebody changed afterwards ---


@pytest.mark.parametrize("number", [1, 2, 5])
def test_entries_removed_at_the_end_are_found_also_when_the_log_was_gone_on_with(tmp_path, number):
    log = new_log(tmp_path, 5)
    removed = heads(log)[-1]
    log.path.write_bytes(b"".join(log.path.read_bytes().splitlines(keepends=True)[:-number]))
    assert any("Entry 5 is missing" in problem for problem in verify_log(log.path))
    log.write("as if nothing had been")
    assert verify_log(log.path) and any("Entry 5 is missing" in problem for problem in verify_log(log.path, [removed]))
    told = [entry for entry in read_log(log.path) if entry["event"] == audit.DAMAGED]
    assert len(told) == 1 and told[0]["anchor"] == list(removed) and told[0]["number"] == 6
    log.write("and again")
    assert verify_log(log.path) and len([entry for entry in read_log(log.path) if entry["event"] == audit.DAMAGED]) == 1


def test_a_log_that_was_removed_is_not_begun_anew_in_silence(tmp_path):
    log = new_log(tmp_path, 5)
    log.path.unlink()
    assert verify_log(log.path)
    log.write("first")
    assert verify_log(log.path) and read_log(log.path)[0]["event"] == audit.DAMAGED


@pytest.mark.parametrize("text", [None, "", "nonsense", "5:abc", "x:" + "0" * 64])
def test_an_anchor_that_is_gone_or_unreadable_is_a_problem_for_good(tmp_path, text):
    log = new_log(tmp_path, 5)
    (tmp_path / "audit.head").unlink() if text is None else (tmp_path / "audit.head").write_text(text)
    assert any("audit.head" in problem for problem in verify_log(log.path))
    log.write("next")
    assert verify_log(log.path)
    assert [entry["event"] for entry in read_log(log.path)[5:]] == [audit.DAMAGED, "next"]


def test_a_changed_last_entry_is_found_also_when_its_hash_was_made_anew(tmp_path):
    log = new_log(tmp_path, 5)
    entries = read_log(log.path)
    log.path.write_text(made_anew(entries[:4] + [entries[4] | {"epsilon": 0.0}]))
    assert verify_log(log.path)
    log.write("next")
    assert verify_log(log.path)


def test_a_log_that_was_made_anew_with_its_anchor_is_found_by_who_noted_a_head(tmp_path):
    log = new_log(tmp_path, 5)
    noted, entries = heads(log), read_log(log.path)
    log.path.write_text(made_anew([entry for entry in entries if entry["run"] != "run 2"]))
    last = read_log(log.path)[-1]
    (tmp_path / "audit.head").write_text(f"{last['number']}:{last['hash']}\n")
    assert verify_log(log.path) == [] and verify_log(log.path, noted[:2]) == []  # nothing else can tell
    for head in noted[2:]:
        assert any(f"Entry {head[0]} is missing or was changed: somebody has noted" in problem for problem in verify_log(log.path, [head]))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"event":"x"}', "no entry"), ("[1, 2]", "no entry"), ("", "no entry"), ("é", "no entry"), ("[" * 100_000, "no entry"),
        ('{"event":1,"number":true,"previous":2,"time_utc":3,"hash":4}', "no entry"),
    ],
)
def test_a_line_that_is_no_entry_is_named_and_the_others_are_read(tmp_path, line, said):
    log = new_log(tmp_path, 5)
    lines = log.path.read_text().splitlines()
    log.path.write_text("\n".join([*lines[:2], line, *lines[2:], ""]))
    assert any(problem.startswith("Line 3:") and said in problem for problem in verify_log(log.path))
    assert len(read_log(log.path)) == 5


def test_the_same_entry_in_other_words_is_a_change(tmp_path):
    """JSON allows a field twice, and spaces: another text with the same hash would show a reader something else."""
    log = new_log(tmp_path, 3)
    lines = log.path.read_text().splitlines()
    for other in ('{"epsilon":9,' + lines[1][1:], lines[1].replace(",", ", ", 1), lines[1].replace("run", "\\u0072un", 1)):
        assert json.loads(other) == json.loads(lines[1])
        log.path.write_text("\n".join([lines[0], other, lines[2], ""]))
        assert any(problem.startswith("Line 2:") for problem in verify_log(log.path))


# --- the command ---


def run(*arguments):
    app = typer.Typer()
    consortium_cli.register(app)
    return CliRunner().invoke(app, ["audit-log", *map(str, arguments)])


def test_the_command_says_how_many_entries_and_the_head(tmp_path):
    log = new_log(tmp_path)
    number, seal = log.head()
    result = run("verify", log.path)
    assert result.exit_code == 0 and f"5 entries, head 5:{seal}" in result.output and "Note the head" in result.output
    result = run("verify", log.path, "--head", f"{number}:{seal.upper()}", "--head", "0:" + "0" * 64)
    assert result.exit_code == 0 and "holds the 2 noted head(s)" in result.output


def test_the_command_names_each_problem_on_a_line(tmp_path):
    log = new_log(tmp_path)
    lines = log.path.read_text().splitlines()
    log.path.write_text("\n".join([lines[0], lines[2], lines[3].replace("run 3", "run 9"), ""]))
    result = run("verify", log.path, "--head", "5:" + "a" * 64)
    said = result.output.splitlines()
    assert result.exit_code == 1 and said[-1] == f"{len(said) - 2} problem(s)." and len(said) == 6
    assert said[0].startswith("Line 2: entry 3 follows entry 1") and said[1].startswith("Line 3:") and "a" * 64 in said[3]


def test_the_command_refuses_a_head_that_is_none_and_a_file_that_is_not_there(tmp_path):
    assert run("verify", new_log(tmp_path).path, "--head", "5:abc").exit_code == 2
    assert run("verify", tmp_path / "nothing.jsonl").exit_code == 2


def test_the_command_shows_entries_with_their_facts(tmp_path):
    log = new_log(tmp_path)
    log.write("plan denied", reason="too\nmany rounds", by="owner")
    said = run("show", log.path).output.splitlines()
    assert len(said) == 6 and said[-1].endswith('plan denied: by "owner", reason "too\\nmany rounds"') and said[0].split()[0] == "1"
    assert run("show", log.path, "--last", "2").output.splitlines() == said[-2:]
    assert run("show", log.path, "--event", "plan denied", "--last", "0").output.splitlines() == said[-1:]
