"""The training plan: all of it is hashed, signed and shown, and nothing in it can look like something else."""

import base64
import itertools
import json
import sys
from datetime import UTC, datetime, timedelta

import pytest

from fl_utils.config import ConfigError, ExperimentConfig, make_config
from fl_utils.deployment.nvflare.plan import (
    USUAL_OUTPUTS, NoiseTerms, TrainingPlan, canonical, difference, make_plan, read_signed, rendered, sign_plan, visible,
)
from fl_utils.deployment.nvflare.settings import OUTPUTS, RuleBroken
from fl_utils.trust.accounting import epsilon_of
from tests.unit.made_governance import DELTA, NOISE, OTHER, RATE, RESEARCHER, STEPS, authority, person, plan_of

PLAIN, PRIVATE = plan_of("A model"), plan_of("A model", private=True)
PLANS = {"plain": PLAIN, "private": PRIVATE}
#: Field -> another value, with which the plan is still one; those of "config." are of the configuration.
CHANGES = {
    "title": "Another model", "purpose": "To try something else.", "hospitals": ("hospital_1", "hospital_3"),
    "class_names": ("none", "glioma"), "class_weights": (1.0, 2.0), "min_hospitals": 1, "round_timeout_s": 301, "encrypted": True,
    "outputs": ("model_update",),
    "config.dataset": "phantom_chest", "config.method": {"method": "fedprox", "proximal_strength": 0.1}, "config.partition": "natural",
    "config.num_clients": {"num_clients": 3}, "config.seed": 1, "config.profile": "paper", "config.split": "random", "config.split_seed": 1,
    "config.image_size_px": 32, "config.num_images": 50, "config.model": "seed_cnn", "config.total_rounds": 11,
    "config.client_epochs_per_round": 2, "config.client_batch_size": 8, "config.client_learning_rate": 0.06, "config.client_momentum": 0.5,
    "config.server_learning_rate": 0.5, "config.augment": False, "config.class_weighting": False,
    "config.dirichlet_alpha": {"partition": "dirichlet", "dirichlet_alpha": 0.3},
    "config.classes_per_client": {"partition": "pathological", "classes_per_client": 1},
    "config.quantity_alpha": {"partition": "quantity", "quantity_alpha": 0.3},
    "config.proximal_strength": {"method": "fedprox", "proximal_strength": 0.2}, "config.norm_statistics": "dropped",
    "config.marked_hospitals": 1, "config.shuffled_labels": True, "config.shadow": 3,
}
#: The same for what only a plan with noise has.
PRIVATE_CHANGES = {
    "noise": NoiseTerms(noise_multiplier=NOISE, sampling_rate=RATE, steps=STEPS + 1), "config.epsilon": 2.5, "config.delta": 2e-3,
    "config.clipping_norm": 2.0,
    "config.privacy_unit": {"privacy_unit": None, "epsilon": None, "delta": None, "clipping_norm": None, "noise": None},
}
NOISES = {
    "noise_multiplier": NoiseTerms(noise_multiplier=NOISE + 0.1, sampling_rate=RATE, steps=STEPS),
    "sampling_rate": NoiseTerms(noise_multiplier=NOISE, sampling_rate=RATE / 2, steps=STEPS),
    "steps": PRIVATE_CHANGES["noise"],
}
#: What can have one value only in a plan; `test_what_cannot_be_planned` tries others.
FIXED = {"format"} | {f"config.{name}" for name in (
    "plane", "model_width", "model_depth", "background_ratio", "clients_per_round", "server_momentum", "personal_epochs",
    "adaptive_clipping", "encrypted", "aggregator", "assumed_attackers", "root_examples", "attack", "attack_fraction", "attack_schedule",
    "attack_strength", "attack_source", "attack_target",
)}  # fmt: skip
#: Every sign at which some program begins a new line.
BREAKS = [chr(number) for number in range(sys.maxunicode + 1) if len(f"a{chr(number)}b".splitlines()) > 1]
#: What is not seen, turns the order of letters, or drives a terminal.
UNSEEN = ["\x00", "\x08", "\x1b[2J", "\x7f", "\x9b", "\u00ad", "\u200b", "\u200f", "\u202e", "\u2066", "\u2060", "\ufeff", "\u2800", "\u3164", "\uffa0"]


def changed(plan, field, value):
    """A plan, checked, that differs in a field, and in what has to go with it."""
    fields = dict(plan)
    own = dict(value) if isinstance(value, dict) else {field.removeprefix("config."): value}
    if field.startswith("config."):
        if "num_clients" in own:
            fields["hospitals"] = tuple(f"hospital_{n}" for n in range(1, own["num_clients"] + 1))
        fields |= {name: own.pop(name) for name in list(own) if name in TrainingPlan.model_fields}
        fields["config"] = make_config(**plan.config.model_dump() | own)
    else:
        fields |= own
    return make_plan(**fields)


def every_change():
    for field, value in CHANGES.items():
        yield pytest.param(PLAIN, field, value, id=field)
    for field, value in PRIVATE_CHANGES.items():
        yield pytest.param(PRIVATE, field, value, id=f"private-{field}")
    for name, value in NOISES.items():
        yield pytest.param(PRIVATE, "noise", value, id=f"noise.{name}")


CASES = list(every_change())


def signed(plan=PRIVATE, name=RESEARCHER, role="lead"):
    certificate, key = person(name, role)
    return sign_plan(plan, key, certificate)


def refused(content, rule=None, **arguments):
    with pytest.raises(RuleBroken) as error:
        read_signed(content, authority(), **arguments)
    assert error.value.rule in ((rule,) if rule else ("signature", "identity"))
    return str(error.value)


# --- the hash ---


def test_no_field_is_forgotten_here():
    config = {f"config.{name}" for name in ExperimentConfig.model_fields}
    assert set(CHANGES) | set(PRIVATE_CHANGES) | FIXED == set(TrainingPlan.model_fields) - {"config"} | config
    assert set(NOISES) == set(NoiseTerms.model_fields)


@pytest.mark.parametrize(("plan", "field", "value"), CASES)
def test_every_field_is_in_the_hash(plan, field, value):
    other = changed(plan, field, value)
    assert other != plan and other.hash != plan.hash and canonical(other) != canonical(plan)


def test_equal_plans_have_equal_bytes_however_they_came_about():
    fields = dict(PRIVATE)
    config = make_config(**dict(reversed(PRIVATE.config.model_dump().items())))
    noise = {"steps": STEPS, "sampling_rate": RATE, "noise_multiplier": NOISE}
    others = [
        make_plan(**dict(reversed(fields.items()))), make_plan(**fields | {"config": config, "noise": noise}),
        make_plan(**fields | {"hospitals": list(PRIVATE.hospitals), "class_weights": [1, 1]}),
        make_plan(**json.loads(canonical(PRIVATE))), make_plan(**json.loads(json.dumps(PRIVATE.model_dump(mode="json"), indent=4))),
    ]
    for other in others:
        assert other == PRIVATE and canonical(other) == canonical(PRIVATE) and other.hash == PRIVATE.hash
    assert len(PRIVATE.hash) == 64 and signed(others[-1]) == signed()


def test_a_plan_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        PLAIN.title = "Another"
    with pytest.raises(ValueError, match="frozen"):
        PRIVATE.noise.steps = 100


# --- signing ---


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_what_was_signed_is_read(plan):
    found = read_signed(signed(plan), authority())
    assert found.plan == plan and found.plan.hash == plan.hash and found.content == signed(plan)
    assert (found.person.name, found.person.role, found.person.role_word) == (RESEARCHER, "lead", "researcher")


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # of a certificate that a changed byte made odd
def test_a_changed_byte_anywhere_is_refused():
    """Also where it would change nothing that is read: between the words of JSON, at the ends of a certificate's lines."""
    content, others = signed(), itertools.cycle(b" \r\n\tA1r\"}")
    for place, byte in enumerate(content):
        for new in {byte ^ 1, byte ^ 32, next(others)} - {byte}:
            refused(content[:place] + bytes([new]) + content[place + 1 :])


@pytest.mark.parametrize(
    "change", [
        lambda content: content + b"\n", lambda content: b" " + content, lambda content: content[:-1], lambda content: b"\xef\xbb\xbf" + content,
        lambda content: json.dumps(json.loads(content)).encode(),
        lambda content: json.dumps(dict(reversed(json.loads(content).items())), indent=2).encode() + b"\n",
        lambda content: json.dumps(json.loads(content) | {"note": "approved by all"}, indent=2).encode() + b"\n",
        lambda content: content.replace(b"{\n", b'{\n  "plan": {"title": "Something harmless"},\n', 1),
        lambda content: content.replace(b'"class_weights": [\n      1.0', b'"class_weights": [\n      1'),
        lambda content: content.replace(b'"format": 1,', b'"format": 1.0,'),
    ], ids=["line at the end", "space before", "cut", "byte order mark", "one line", "other order", "field more", "twice", "integer", "float"],
)  # fmt: skip
def test_a_plan_has_one_file_only(change):
    content = signed()
    assert change(content) != content
    refused(change(content), "signature")


@pytest.mark.parametrize(("plan", "field", "value"), CASES)
def test_another_plan_under_the_same_signature_is_refused(plan, field, value):
    body = json.loads(signed(plan)) | {"plan": changed(plan, field, value).model_dump(mode="json")}
    assert "changed afterwards" in refused(json.dumps(body, indent=2).encode() + b"\n", "signature")


@pytest.mark.parametrize(
    "content", [
        b"", b"{}", b"null", b"[]", b"\xff\xfe", b'{"plan": 1, "certificate": "", "signature": ""}', b'{"plan": {}, "certificate": "", "signature": ""}',
        json.dumps({"plan": PLAIN.model_dump(mode="json"), "certificate": 3, "signature": ""}).encode(),
        json.dumps(json.loads(signed()) | {"signature": "no base64!"}).encode(), json.dumps(json.loads(signed()) | {"signature": None}).encode(),
    ], ids=range(10),
)  # fmt: skip
def test_what_is_no_signed_plan_is_told_so(content):
    assert "no signed plan" in refused(content, "signature") and "consortium plan" in refused(content, "signature")


def test_a_plan_that_cannot_be_is_no_plan_even_if_it_is_signed():
    wrong = PLAIN.model_copy(update={"min_hospitals": 7})
    assert "min_hospitals is 7 of 2 hospitals" in refused(signed(wrong), "signature")


def test_the_signature_is_the_persons_of_the_certificate():
    own, other = json.loads(signed()), json.loads(signed(name=OTHER))
    for body in (own | {"certificate": other["certificate"]}, own | {"signature": other["signature"]}):
        refused(json.dumps(body, indent=2).encode() + b"\n", "signature")
    certificate, _ = person(RESEARCHER, "lead")
    refused(sign_plan(PRIVATE, person(OTHER, "lead")[1], certificate), "signature")
    assert read_signed(signed(name=OTHER), authority()).person.name == OTHER
    assert read_signed(signed(name=OTHER), authority()).plan.hash == PRIVATE.hash


def test_a_stranger_and_an_ended_certificate_are_refused():
    certificate, key = person(authority="theirs")
    assert "authority" in refused(sign_plan(PRIVATE, key, certificate), "identity")
    assert "new one" in refused(signed(), "identity", now=datetime.now(UTC) + timedelta(days=31))


def test_however_the_certificates_lines_end_the_file_is_the_same():
    certificate, key = person(RESEARCHER, "lead")
    assert sign_plan(PRIVATE, key, certificate.replace(b"\n", b"\r\n") + b"\n\n") == signed()


def test_the_signature_is_over_the_hashed_bytes():
    """Whoever wants to check it without this suite can: RSA, PKCS#1 v1.5, SHA-256 over canonical JSON."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    body = json.loads(signed())
    text = json.dumps(body["plan"], sort_keys=True, separators=(",", ":")).encode()
    key = x509.load_pem_x509_certificate(body["certificate"].encode()).public_key()
    key.verify(base64.b64decode(body["signature"]), text, padding.PKCS1v15(), hashes.SHA256())
    assert text == canonical(PRIVATE)


# --- what the owner reads ---


@pytest.mark.parametrize(("plan", "field", "value"), CASES)
def test_every_field_shows(plan, field, value):
    other = changed(plan, field, value)
    marked = difference(other, plan)
    assert rendered(other) != rendered(plan) and marked
    assert {line[2:] for line in marked if line[0] == "-"} == set(rendered(plan).splitlines()) - set(rendered(other).splitlines())
    assert {line[2:] for line in marked if line[0] == "+"} == set(rendered(other).splitlines()) - set(rendered(plan).splitlines())


def test_a_plan_in_words():
    lines = dict(line.split(": ", 1) for line in rendered(PLAIN).splitlines() if not line.startswith("Leaves"))
    assert lines["Title"] == "A model" and lines["Purpose"] == "To try it." and lines["Hospitals"] == "hospital_1, hospital_2"
    assert lines["Classes"] == "none, tumour" and lines["Model"] == "small_cnn, grey images of 24 x 24 pixels" and lines["Method"] == "fedavg"
    assert lines["Rounds"] == "10, each with at least 2 hospitals, at most 300 s" and lines["Seed"] == "0"
    assert lines["In a round"] == "1 passes over the hospital's training images, batches of 16, learning rate 0.05, images moved and turned at random"
    assert lines["Loss"] == "cross-entropy: none 1, tumour 1" and lines["Differential privacy"] == "none" and lines["Encrypted sums"] == "no"
    weighted = rendered(changed(PLAIN, "class_weights", (0.5, 2.0)))
    assert "Loss: cross-entropy, classes weighted: none 0.5, tumour 2" in weighted
    assert "Encrypted sums: yes, CKKS" in rendered(changed(PLAIN, "encrypted", True))


def test_each_output_is_told_in_words():
    everything = changed(PLAIN, "outputs", tuple(OUTPUTS))
    assert [line for line in rendered(everything).splitlines() if line.startswith("Leaves")] == [
        f"Leaves the hospital: {name}: {words}" for name, words in OUTPUTS.items()
    ]


def test_equal_plans_give_equal_lines():
    again = make_plan(**json.loads(canonical(PRIVATE)))
    assert rendered(again) == rendered(PRIVATE) and difference(again, PRIVATE) == []


def test_without_a_plan_before_all_is_new():
    assert difference(PRIVATE, None) == [f"+ {line}" for line in rendered(PRIVATE).splitlines()]


def privacy_line(plan):
    return next(line for line in rendered(plan).splitlines() if line.startswith("Differential privacy: "))


def test_the_epsilon_that_is_shown_is_the_noises_own():
    """Not what its author says it is: who wants less noise could promise anything."""
    assert "epsilon 1.73 at delta 0.001 over all rounds, planned for 2:" in privacy_line(PRIVATE)
    assert "epsilon 1.73 at delta 0.001 over all rounds, planned for 0.1:" in privacy_line(changed(PRIVATE, "config.epsilon", 0.1))
    assert f"epsilon {epsilon_of(NOISE, PRIVATE.round_terms(20)):.3g} at" in privacy_line(changed(PRIVATE, "config.total_rounds", 20))
    little = NoiseTerms(noise_multiplier=0.01, sampling_rate=RATE, steps=STEPS)
    assert float(privacy_line(changed(PRIVATE, "noise", little)).split("epsilon ")[1].split()[0]) > 1e5
    odd = NoiseTerms(noise_multiplier=1000, sampling_rate=1e-6, steps=10_000)
    assert "epsilon that cannot be worked out at delta" in privacy_line(changed(PRIVATE, "noise", odd))


@pytest.mark.parametrize("field", ["title", "purpose", "config.dataset"])
def test_no_text_can_look_like_a_line_of_its_own(field):
    assert {"\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"} <= set(BREAKS)
    harmless = rendered(changed(PLAIN, field, "Good Encrypted sums: yes, CKKS Good"))
    for sign in BREAKS:
        forged = rendered(changed(PLAIN, field, f"Good{sign}Encrypted sums: yes, CKKS{sign}{sign}Good"))
        assert forged == harmless  # a break is a space, and the text stays in its line
    assert harmless.splitlines().count("Encrypted sums: yes, CKKS") == 0 and harmless.splitlines().count("Encrypted sums: no") == 1


@pytest.mark.parametrize("sign", UNSEEN, ids=ascii)
def test_what_cannot_be_seen_is_shown(sign):
    text = rendered(changed(PLAIN, "title", f"Good{sign}Rounds: 1"))
    assert sign not in text and f"Title: Good{visible(sign)}Rounds: 1" in text.splitlines()
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert visible(sign).isascii() and visible(sign).startswith("\\")


def test_letters_of_all_languages_stay_as_they_are():
    words = "Überblick: опухоль, 腫瘍, سرطان – “ε ≤ 1”\tCafé 🏥"
    assert visible(words) == words and visible("two\nlines") == "two\nlines"


def test_padding_with_blank_letters_cannot_push_a_text_to_the_next_line_of_a_terminal():
    for blank in ("\u2800", "\u3164", "\u115f", "\u1160", "\uffa0", "\u00a0", "\u3000", "\u2003"):
        (line,) = [line for line in rendered(changed(PLAIN, "purpose", "To try it." + blank * 200 + "Seed: 7")).splitlines() if "Seed: 7" in line]
        assert "  " not in line and blank not in line


# --- what a plan can be ---


def test_defaults():
    fields = {name: value for name, value in dict(PLAIN).items() if name not in ("round_timeout_s", "noise", "encrypted", "outputs", "format")}
    plan = make_plan(**fields)
    assert (plan.format, plan.round_timeout_s, plan.noise, plan.encrypted, plan.outputs) == (1, 300, None, False, USUAL_OUTPUTS)
    assert plan.image_shape == (24, 24, 1)


def test_the_terms_of_rounds():
    terms = PRIVATE.round_terms(10)
    assert (terms.unit, terms.delta, terms.steps, terms.sampling, terms.rate) == ("patient", DELTA, 10 * STEPS, "poisson", RATE)
    assert PRIVATE.round_terms().steps == STEPS
    everybody = changed(PRIVATE, "noise", NoiseTerms(noise_multiplier=NOISE, sampling_rate=1, steps=1))
    assert (everybody.round_terms().sampling, everybody.round_terms().rate) == ("all", 1)


@pytest.mark.parametrize(
    ("plan", "fields", "said"), [
        (PLAIN, {"title": ""}, "title: String should have at least 1 character"), (PLAIN, {"title": "x" * 121}, "title: String should have at most 120"),
        (PLAIN, {"purpose": ""}, "purpose: String should have at least 1"), (PLAIN, {"purpose": "x" * 2001}, "purpose: String should have at most 2000"),
        (PLAIN, {"more": 1}, "more: Extra inputs are not permitted"), (PLAIN, {"format": 2}, "format: Input should be 1"),
        (PLAIN, {"hospitals": ("hospital_1",)}, "hospitals: Tuple should have at least 2 items"),
        (PLAIN, {"hospitals": ("hospital_1", "hospital_1")}, "expected 2 different ones"),
        (PLAIN, {"hospitals": ("hospital_1", "hospital_2", "hospital_3")}, "expected 2 different ones"),
        (PLAIN, {"hospitals": ("hospital_1, hospital_2", "hospital_3")}, "without commas"),
        (PLAIN, {"hospitals": ("hospital_1", "hospital_2\nSeed: 1")}, "expected different words"),
        (PLAIN, {"class_names": ("none",), "class_weights": (1.0,)}, "class_names: Tuple should have at least 2 items"),
        (PLAIN, {"class_names": ("none", "none")}, "expected different words"), (PLAIN, {"class_names": ("none", "")}, "expected different words"),
        (PLAIN, {"class_names": ("none 1, tumour", "x")}, "without commas"), (PLAIN, {"class_names": ("none", "t\u200bumour")}, "expected different words"),
        (PLAIN, {"class_weights": (1.0,)}, "expected a number of at least 0 for each of 2 classes"),
        (PLAIN, {"class_weights": (1.0, -0.1)}, "expected a number of at least 0"),
        (PLAIN, {"class_weights": (float("nan"), 1.0)}, "expected a number of at least 0"),
        (PLAIN, {"class_weights": (1.0, float("inf"))}, "expected a number of at least 0"),
        (PLAIN, {"encrypted": True, "config": make_config(**PLAIN.config.model_dump() | {"server_learning_rate": 0.5})}, "server_learning_rate is 0.5"),
        (PLAIN, {"min_hospitals": 3}, "min_hospitals is 3 of 2 hospitals"),
        (PLAIN, {"min_hospitals": 0}, "min_hospitals: Input should be greater than or equal to 1"),
        (PLAIN, {"round_timeout_s": 0}, "round_timeout_s: Input should be greater"),
        (PLAIN, {"outputs": ("num_examples",)}, "expected model_update and others of"), (PLAIN, {"outputs": ()}, "expected model_update"),
        (PLAIN, {"outputs": ("model_update", "gradients")}, "outputs are model_update, gradients"),
        (PLAIN, {"noise": PRIVATE.noise}, "noise and privacy_unit do not fit"), (PRIVATE, {"noise": None}, "noise and privacy_unit do not fit"),
        (PRIVATE, {"noise": {"noise_multiplier": 0, "sampling_rate": 0.2, "steps": 5}}, "noise.noise_multiplier"),
        (PRIVATE, {"noise": {"noise_multiplier": 0.009, "sampling_rate": 0.2, "steps": 5}}, "noise.noise_multiplier"),
        (PRIVATE, {"noise": {"noise_multiplier": float("inf"), "sampling_rate": 0.2, "steps": 5}}, "noise.noise_multiplier"),
        (PRIVATE, {"noise": {"noise_multiplier": 1, "sampling_rate": 0, "steps": 5}}, "noise.sampling_rate"),
        (PRIVATE, {"noise": {"noise_multiplier": 1, "sampling_rate": 1.1, "steps": 5}}, "noise.sampling_rate"),
        (PRIVATE, {"noise": {"noise_multiplier": 1, "sampling_rate": 0.2, "steps": 0}}, "noise.steps"),
        (PRIVATE, {"noise": {"noise_multiplier": 1, "sampling_rate": 0.2, "steps": 1, "seed": 3}}, "noise.seed: Extra inputs"),
        (PRIVATE, {"noise": {"noise_multiplier": 1, "sampling_rate": 0.2, "steps": 100_001}}, "at most 1000000 steps in all"),
    ]
)  # fmt: skip
def test_what_is_wrong_is_named(plan, fields, said):
    with pytest.raises(ConfigError) as error:
        make_plan(**dict(plan) | fields)
    assert str(error.value).startswith("This plan cannot be: ") and said in str(error.value)


@pytest.mark.parametrize(
    ("plan", "config", "said"), [
        (PLAIN, {"method": "fedavgm", "server_momentum": 0.9}, "method 'fedavgm'"), (PLAIN, {"method": "scaffold", "client_momentum": 0}, "method 'scaffold'"),
        (PLAIN, {"method": "finetuned", "personal_epochs": 1}, "method 'finetuned'"), (PLAIN, {"method": "local"}, "cannot be planned"),
        (PLAIN, {"model": "unet", "plane": "axial", "model_width": 8, "model_depth": 2, "class_weighting": False}, "expected a classifier"),
        (PLAIN, {"encrypted": True}, "cannot be planned"), (PLAIN, {"aggregator": "mean"}, "without another aggregator"),
        (PLAIN, {"aggregator": "mean", "attack": "label_flip", "attack_fraction": 0.5}, "without attack"),
        (PLAIN, {"clients_per_round": 1}, "clients_per_round is set"),
        (PLAIN, {"privacy_unit": "hospital", "epsilon": 1.0, "delta": 1e-3, "clipping_norm": 1.0}, "expected 'patient' with noise, or neither"),
        (PRIVATE, {"privacy_unit": "hospital"}, "expected 'patient' with noise, or neither"),
    ]
)  # fmt: skip
def test_what_cannot_be_planned(plan, config, said):
    """A valid configuration, but of something that hospitals and server of a plan do not do."""
    fields = dict(plan) | {"config": make_config(**plan.config.model_dump() | config)}
    with pytest.raises(ConfigError) as error:
        make_plan(**fields)
    assert said in str(error.value)


def test_all_wrong_fields_are_named_at_once():
    with pytest.raises(ConfigError) as error:
        make_plan(title="", hospitals=("hospital_1",), config=PLAIN.config)
    assert all(f"{name}: " in str(error.value) for name in ("title", "purpose", "hospitals", "class_names", "class_weights", "min_hospitals"))
