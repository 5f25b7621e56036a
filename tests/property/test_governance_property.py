"""Whatever is done to an audit log is found; however charges of several processes mix, no budget is overspent or understated."""

import concurrent.futures
import functools
import hashlib
import json
import tempfile
from pathlib import Path

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fl_utils.deployment.nvflare import audit
from fl_utils.deployment.nvflare.audit import AuditLog, read_log, verify_log
from fl_utils.deployment.nvflare.settings import RuleBroken
from fl_utils.deployment.nvflare.store import Store
from fl_utils.trust.accounting import composed_epsilon
from fl_utils.trust.terms import PrivacyTerms
from tests.unit.made_governance import DELTA, RESEARCHER, approved, open_store

SETTINGS = settings(max_examples=300, deadline=None)


@functools.cache
def written() -> tuple[bytes, bytes]:
    """Log and anchor, eight entries."""
    with tempfile.TemporaryDirectory() as folder:
        log = AuditLog(Path(folder) / "audit.jsonl")
        for number in range(8):
            log.write(("plan approved", "budget charged")[number % 2], number_of=number, by="owner", epsilon=number / 7)
        return log.path.read_bytes(), (Path(folder) / "audit.head").read_bytes()


def sealed(body: dict) -> bytes:
    """An entry with a right hash, as somebody would make it who knows how."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return json.dumps(body | {"hash": hashlib.sha256(text.encode()).hexdigest()}, sort_keys=True, separators=(",", ":")).encode() + b"\n"


@st.composite
def tampered(draw) -> bytes:
    """The log after one change, removal, swap, insertion or truncation, of bytes or of entries."""
    content, lines = written()[0], written()[0].splitlines(keepends=True)
    places = st.integers(0, len(lines) - 1)
    kind = draw(st.sampled_from(("byte", "bytes in", "bytes out", "cut", "lines out", "swap", "copy", "forged", "changed", "moved")))
    if kind in ("byte", "bytes in", "bytes out", "cut"):
        start = draw(st.integers(0, len(content) - (kind != "bytes in")))
        if kind == "byte":
            return content[:start] + draw(st.binary(min_size=1, max_size=1)) + content[start + 1 :]
        if kind == "bytes in":
            return content[:start] + draw(st.binary(min_size=1, max_size=40)) + content[start:]
        return content[:start] + (content[draw(st.integers(start + 1, len(content))) :] if kind == "bytes out" else b"")
    one, other = draw(places), draw(places)
    if kind == "lines out":
        del lines[min(one, other) : max(one, other) + 1]
    elif kind == "swap":
        lines[one], lines[other] = lines[other], lines[one]
    elif kind == "moved":
        lines.insert(other, lines.pop(one))
    elif kind == "copy":
        lines.insert(draw(st.integers(0, len(lines))), lines[one])
    else:  # with the right number, place in the chain and hash
        body = {k: v for k, v in json.loads(lines[one]).items() if k != "hash"}
        if kind == "changed":
            lines[one] = sealed(body | {"by": draw(st.text(max_size=5))})
        else:
            after = {"number": body["number"] + 1, "previous": json.loads(lines[one])["hash"]}
            lines.insert(one + 1, sealed(body | after))
    return b"".join(lines)


@SETTINGS
@given(content=tampered())
def test_any_one_change_of_the_log_is_found_and_stays_found(content):
    assume(content != written()[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        path.write_bytes(content)
        (Path(folder) / "audit.head").write_bytes(written()[1])
        assert verify_log(path)
        AuditLog(path).write("as if nothing had been")
        kept = path.read_bytes().startswith(written()[0])
        # What was put behind the last entry may have been left by a process that was ended; the log tells that it was there.
        assert verify_log(path) or (kept and read_log(path)[-2]["event"] == audit.REPAIRED)
        assert read_log(path)[-1]["event"] == "as if nothing had been"


@SETTINGS
@given(content=tampered(), known=st.sets(st.integers(1, 8)))
def test_who_noted_the_last_head_needs_no_anchor(content, known):
    assume(not content.startswith(written()[0]))  # later entries are nothing that an earlier head could tell of
    noted = [(entry["number"], entry["hash"]) for entry in map(json.loads, written()[0].splitlines()) if entry["number"] in known | {8}]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        path.write_bytes(content)
        assert any("audit.head" not in problem for problem in verify_log(path, noted))
        path.write_bytes(written()[0])
        (Path(folder) / "audit.head").write_bytes(written()[1])
        assert verify_log(path, noted) == []


values = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 300), facts=st.dictionaries(st.text(max_size=8), values, max_size=5))
def test_any_facts_are_read_as_they_were_written_and_survive_a_cut_line_behind_them(cut, facts):
    facts = {f"fact {name}": value for name, value in facts.items()}
    with tempfile.TemporaryDirectory() as folder:
        log = AuditLog(Path(folder) / "audit.jsonl")
        log.write("first", **facts)
        whole, anchor = log.path.read_bytes(), (Path(folder) / "audit.head").read_bytes()
        log.write("second", **facts)
        half = log.path.read_bytes()[: len(whole) + cut]
        log.path.write_bytes(half)
        (Path(folder) / "audit.head").write_bytes(anchor)
        log.write("third")
        first, *_, third = read_log(log.path)
        assert verify_log(log.path) == [] and third["event"] == "third"
        assert {name: first[name] for name in facts} == facts and log.path.read_bytes().startswith(whole)


#: (who charges, noise multiplier, steps, sampling rate)
charges = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([2.0, 3.0, 6.0]), st.integers(1, 3), st.sampled_from([0.2, 1.0])), min_size=1, max_size=10
)


def release(noise, steps, rate):
    return noise, PrivacyTerms("patient", DELTA, steps, "all" if rate == 1 else "poisson", rate)


def spent_by(releases):
    """Worked out by the accountant alone, which knows no store."""
    return composed_epsilon(releases)


@settings(max_examples=25, deadline=None)
@given(charges=charges, epsilon=st.floats(0.2, 4.0))
def test_charges_in_any_order_never_overspend_and_are_never_forgotten(charges, epsilon):
    with tempfile.TemporaryDirectory() as folder:
        first = open_store(folder, epsilon)
        stores, taken = [first, Store(folder), Store(folder)], []
        for number, (who, *asked) in enumerate(charges):
            noise, terms = release(*asked)
            shown = first.spent("phantom_brain")
            try:
                after = stores[who].charge("phantom_brain", f"run {who}", number, noise, terms)
                taken.append((noise, terms))
                assert after >= spent_by(taken)
            except RuleBroken as error:
                assert error.rule == "budget" and spent_by([*taken, (noise, terms)]) > epsilon * (1 - 2e-3)
            for store in stores:
                assert spent_by(taken) <= store.spent("phantom_brain") <= epsilon
                assert store.spent("phantom_brain") >= shown and store.left("phantom_brain") >= 0
        assert [(one.noise_multiplier, one.terms) for one in Store(folder).charges("phantom_brain")] == taken
        logged = [entry for entry in read_log(first.log.path) if entry["event"] == "budget charged"]
        assert len(logged) == len(taken) and first.problems() == []


@settings(max_examples=15, deadline=None)
@given(charges=charges, epsilon=st.floats(0.2, 4.0))
def test_charges_at_the_same_time_never_overspend_and_are_never_forgotten(charges, epsilon):
    def charged(who):
        store, taken = Store(folder), []
        for number, (_, *asked) in enumerate(one for one in charges if one[0] == who):
            noise, terms = release(*asked)
            try:
                after = store.charge("phantom_brain", f"run {who}", number, noise, terms)
                taken.append((noise, terms))
                assert store.spent("phantom_brain") >= after
            except RuleBroken:
                pass
        return taken

    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(3) as pool:
        store = open_store(folder, epsilon)
        taken = sum(pool.map(charged, range(3)), [])
        assert spent_by(taken) <= store.spent("phantom_brain") <= epsilon
        kept = [(one.noise_multiplier, one.terms) for one in store.charges("phantom_brain")]
        assert sorted(kept, key=str) == sorted(taken, key=str) and store.problems() == []


@settings(max_examples=20, deadline=None)
@given(choices=st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=12), max_runs=st.integers(1, 4))
def test_no_plan_runs_more_often_than_it_may(choices, max_runs):
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder, max_runs=max_runs)
        stores, signed, started = [store, Store(folder), Store(folder)], approved(store), 0
        for number, (who, ends) in enumerate(choices):
            try:
                stores[who].start_run(f"run {number}", signed.plan.hash, RESEARCHER)
                started += 1
                if ends:
                    stores[who].end_run(f"run {number}", "failed")
            except RuleBroken as error:
                assert error.rule == "runs" and started == max_runs
        assert started == min(max_runs, len(choices)) == len(store.runs(signed.plan.hash))
