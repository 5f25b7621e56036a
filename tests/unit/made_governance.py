"""A consortium of made-up people, plans and a hospital's store, for the tests of its governance; and processes to be killed."""

import functools
import subprocess
import time
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from fl_utils.children import owned_python
from fl_utils.config import make_config
from fl_utils.deployment.nvflare.plan import NoiseTerms, make_plan, read_signed, sign_plan
from fl_utils.deployment.nvflare.store import Store
from fl_utils.trust.terms import PrivacyTerms

RESEARCHER, OTHER, OBSERVER = "researcher@university.org", "other@university.org", "observer@university.org"
CARD = {
    "name": "phantom_brain", "title": "Drawn brains", "class_names": ["none", "tumour"], "image_size_px": 24,
    "counts": {"train": {"none": 30, "tumour": 20}}, "patients": {"train": 50, "validation": 9, "test": 9},
    "source": "drawn", "synthetic": True,
}
#: One round of the private plan; ten of them cost epsilon 1.7 at DELTA.
DELTA, NOISE, STEPS, RATE = 1e-3, 2.5, 5, 0.2
TERMS = PrivacyTerms("patient", DELTA, STEPS, "poisson", RATE)


@functools.cache
def person(name=RESEARCHER, role="lead", authority="ours", days=30):
    """(certificate, key) of somebody, PEM bytes; the same each time."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    signer = authority_key(authority)
    certificate = _certificate(_name(name, role), _name(authority), key, signer, days)
    return certificate, key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


@functools.cache
def authority_key(authority="ours"):
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@functools.cache
def authority(name="ours"):
    """The consortium's certificate, PEM bytes."""
    return _certificate(_name(name), _name(name), authority_key(name), authority_key(name), 3650)


def plan_of(title="A model", private=False, hospitals=("hospital_1", "hospital_2"), outputs=("model_update", "num_examples"),
            dataset="phantom_brain", **changed):
    """A plan; `changed` are fields of its configuration."""
    protection = {"privacy_unit": "patient", "epsilon": 2.0, "delta": DELTA, "clipping_norm": 1.0} if private else {}
    config = make_config(**{
        "dataset": dataset, "method": "fedavg", "partition": "iid", "num_clients": len(hospitals), "seed": 0, "profile": "quick",
        "image_size_px": 24, "model": "small_cnn", "total_rounds": 10, "client_learning_rate": 0.05, "client_batch_size": 16,
    } | protection | changed)
    noise = NoiseTerms(noise_multiplier=NOISE, sampling_rate=RATE, steps=STEPS) if private else None
    return make_plan(
        title=title, purpose="To try it.", config=config, hospitals=hospitals, class_names=("none", "tumour"), class_weights=(1.0, 1.0),
        min_hospitals=2, noise=noise, outputs=outputs,
    )


def signed_by(plan, name=RESEARCHER, role="lead"):
    certificate, key = person(name, role)
    return read_signed(sign_plan(plan, key, certificate), authority())


def publish(store, epsilon=None, **changed):
    rules = {"min_patients": 10, "max_runs": 3, "outputs": ("model_update", "num_examples"), "by": "owner"} | changed
    card = rules.pop("card", CARD)
    return store.publish(card, epsilon=epsilon, delta=None if epsilon is None else DELTA, **rules)


def open_store(folder, epsilon=None, **changed):
    """A hospital's store with a data set on which researchers may train."""
    store = Store(folder)
    publish(store, epsilon, **changed)
    for action in ("see", "train"):
        store.grant(CARD["name"], "lead", action, "owner")
    return store


def approved(store, plan=None, name=RESEARCHER):
    """A plan that was handed in and approved."""
    signed = signed_by(plan or plan_of(), name)
    store.file_request(signed)
    store.decide(signed.plan.hash, True, "", "owner", name)
    return signed


def begin(program, *arguments):
    """A Python process that ends with this one, with pipes for what it is told and what it says."""
    command = [*owned_python(program), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def race(program, arguments, number):
    """What each of several processes says after "ready": all are let go when the last one is ready."""
    runners = [begin(program, *arguments, one) for one in range(number)]
    for one in runners:
        assert one.stdout.readline() == "ready\n"
    for one in runners:
        one.stdin.write("go\n")
        one.stdin.flush()
    said = [one.communicate(timeout=120)[0].split() for one in runners]
    assert [one.returncode for one in runners] == [0] * number
    return said


def kill_after(process, lines, delay_s):
    """SIGKILL, a moment after so many lines; all whole lines that were said."""
    said = [process.stdout.readline() for _ in range(lines)]
    time.sleep(delay_s)
    process.kill()
    said += process.stdout.readlines()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    return [line.strip() for line in said if line.endswith("\n")]


def _name(name, role=None):
    fields = {NameOID.COMMON_NAME: name} | ({NameOID.UNSTRUCTURED_NAME: role} if role else {})
    return x509.Name([x509.NameAttribute(kind, text) for kind, text in fields.items()])


def _certificate(subject, issuer, key, signer, days):
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=days))
        .sign(signer, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.PEM)
