"""Protected training against what it must equal: encrypted sums and private steps against NumPy and plain FedAvg.

TOLERANCE is that of `test_fedavg`, for float32 against float64; encrypted sums are besides held to the error that
`trust.encrypted` states. A wrong share, order or sign moves the weights by 1e-3 and more.
"""

import numpy as np
import pytest
import tensorflow as tf

from fl_utils import seeding
from fl_utils.config import make_config
from fl_utils.experiments import training
from fl_utils.experiments.encrypted_learner import EncryptedLearner
from fl_utils.experiments.hospitals import share_out
from fl_utils.experiments.protection import Noise, aggregator_of, trainer_of
from fl_utils.learning import reference
from fl_utils.learning.algorithms import ServerSettings, algorithm_named
from fl_utils.learning.client_files import write_client_files
from fl_utils.learning.client_updates import ClientTask, averaging
from fl_utils.learning.federated import FederatedLearner
from fl_utils.learning.local import LocalSettings, LocalTrainer
from fl_utils.learning.process import build_process
from fl_utils.trust import encrypted
from fl_utils.trust import noise as noise_plan
from fl_utils.trust.messages import MessageError
from fl_utils.trust.terms import PrivacyTerms
from tests.equivalence.helpers import (
    ONES, SEED, SIZES, TOLERANCE, deltas_by_hand, distance, federation, hospitals, softmax_regression,
)
from tests.unit.made_patients import made_patients

pytestmark = pytest.mark.usefixtures("folders")

SETTINGS = LocalSettings(batch_size=4, epochs=2, learning_rate=0.05, momentum=0.9)
CLASS_WEIGHTS = np.array([0.5, 1.0, 2.0], np.float32)
EPS32 = float(np.finfo(np.float32).eps)


def config_of(**fields):
    return make_config(**{
        "dataset": "phantom_chest", "method": "fedavg", "partition": "iid", "num_clients": len(SIZES), "seed": SEED,
        "profile": "smoke", "model": "small_cnn", "image_size_px": 16, "total_rounds": 2, "client_learning_rate": 0.1,
        "client_momentum": 0.0, "augment": False,
    } | fields)  # fmt: skip


def private(**fields):
    return config_of(**{"epsilon": 8.0, "delta": 1e-3, "clipping_norm": 1e6} | fields)


# --- encrypted sums ---


def encrypted_federation():
    images, labels, parts = hospitals(SIZES)
    return EncryptedLearner(
        softmax_regression(), SETTINGS, [images[part] for part in parts], [labels[part] for part in parts],
        CLASS_WEIGHTS, seed=SEED, trainer_type=LocalTrainer,
    )


def test_encrypted_federation_is_fedavg_in_numpy_and_in_tff(folders):
    learner, plain = encrypted_federation(), federation(folders, SIZES, SETTINGS, class_weights=CLASS_WEIGHTS)
    expected = learner.weights()
    assert distance(expected, plain.weights()) == 0
    for round_num in (1, 2):
        deltas = deltas_by_hand(expected, SIZES, SETTINGS, round_num, CLASS_WEIGHTS)
        losses, theirs = learner.do_round(round_num), plain.do_round(round_num)
        by_clients = reference.federated_average(expected, deltas, [1, 1, 1])
        expected = reference.federated_average(expected, deltas, SIZES)
        assert distance(learner.weights(), expected) < TOLERANCE
        assert distance(learner.weights(), plain.weights()) < TOLERANCE
        assert distance(learner.weights(), by_clients) > 1e-3
        assert losses == pytest.approx(theirs, abs=TOLERANCE)
        assert all(weight.dtype == np.float32 for weight in learner.weights())
    # One ciphertext of two polynomials of 8192 numbers each, up to rounding in their bits.
    assert len(learner.upload_bytes) == len(learner.download_bytes) == len(SIZES)
    assert all(8192 * 2 * 100 / 8 < size < 8192 * 2 * 8 * 3 for size in learner.upload_bytes)


def test_the_error_of_an_encrypted_round_is_the_one_that_is_stated():
    """The hospitals' own float32 updates, averaged in float64, beside what was decrypted."""
    images, labels, parts = hospitals(SIZES)
    learner, trainer = encrypted_federation(), LocalTrainer(softmax_regression(), SETTINGS)
    for round_num in (1, 2):
        before, deltas = learner.weights(), []
        for client, part in enumerate(parts):
            seed = tf.constant(seeding.tf_seed(SEED, "batch_order", str(client), round_num))
            data = tf.constant(images[part]), tf.constant(labels[part], tf.int32), tf.constant(CLASS_WEIGHTS), seed
            deltas.append([d.numpy().astype(np.float64) for d in averaging(trainer, ClientTask(before, *data)).delta])
        learner.do_round(round_num)
        for number, (start, end) in enumerate(zip(before, learner.weights(), strict=True)):
            mean = np.average([delta[number] for delta in deltas], axis=0, weights=SIZES)
            stated = encrypted.SUM_ERROR / sum(SIZES) + 1e-6 * np.abs(mean)
            rounding = EPS32 * (np.abs(start) + 2 * np.abs(mean))  # of the mean and of the weights to float32
            assert (np.abs(end - (start - mean)) <= stated + rounding).all()
            assert np.abs(mean).max() > 1e-2


def flipped(message):
    changed = bytearray(message)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


def test_a_tampered_message_is_an_error_and_leaves_the_weights_as_before(monkeypatch):
    learner, untouched = encrypted_federation(), encrypted_federation()
    genuine_update, genuine_sum, kept = encrypted.Hospital.encrypt_update, encrypted.Server.add, []
    learner.do_round(1)
    untouched.do_round(1)
    before = [weight.copy() for weight in learner.weights()]

    def on_the_way(hospital, *args, **kwargs):
        message = genuine_update(hospital, *args, **kwargs)
        return flipped(message) if hospital.name == "hospital 1" else message

    def of_another_round(hospital, update, *, weight, round_num):
        return genuine_update(hospital, update, weight=weight, round_num=round_num - (hospital.name == "hospital 2"))

    def on_the_way_back(server, *args, **kwargs):
        kept.append(genuine_sum(server, *args, **kwargs))
        return {name: flipped(message) for name, message in kept[-1].items()}

    def one_twice(server, sent, **kwargs):
        """A server that adds a genuine update once more: its tag fits, the count inside the ciphertext does not."""
        body = encrypted.messages.unseal(
            sent["hospital 0"], key=server._keys["hospital 0"], kind="update", session=server._session,
            sender="hospital 0", receiver=encrypted.SERVER, round_num=kwargs["round_num"],
        )
        back = genuine_sum(server, sent, **kwargs)
        total = encrypted.messages.unseal(
            back["hospital 0"], key=server._keys["hospital 0"], kind="sum", session=server._session,
            sender=encrypted.SERVER, receiver="hospital 0", round_num=kwargs["round_num"],
        )
        pairs = zip(encrypted._vectors(server.context, total), encrypted._vectors(server.context, body), strict=True)
        wrong = encrypted._join([(a + b).serialize() for a, b in pairs])
        return {name: encrypted.messages.seal(
            wrong, key=key, kind="sum", session=server._session, sender=encrypted.SERVER, receiver=name,
            round_num=kwargs["round_num"],
        ) for name, key in server._keys.items()}

    for place, name, function, said in (
        (encrypted.Hospital, "encrypt_update", on_the_way, "'hospital 1' was refused: its tag does not fit"),
        (encrypted.Hospital, "encrypt_update", of_another_round, "'hospital 2' was refused: .*round 1 instead of 2"),
        (encrypted.Server, "add", on_the_way_back, "'the server' was refused: its tag does not fit"),
        (encrypted.Server, "add", one_twice, "the sum holds 'hospital 0' \\+2.000 times"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, function)
            with pytest.raises(MessageError, match=said):
                learner.do_round(2)
        assert distance(learner.weights(), before) == 0
    learner.do_round(2)
    untouched.do_round(2)
    assert distance(learner.weights(), untouched.weights()) < TOLERANCE and distance(learner.weights(), before) > 1e-3


def test_an_encrypted_federation_goes_on_with_new_keys():
    """A resumed process makes new keys, which change nothing but the last digits."""
    learner, resumed = encrypted_federation(), encrypted_federation()
    learner.do_round(1)
    resumed.restore(learner.state())
    learner.do_round(2)
    resumed.do_round(2)
    assert distance(learner.weights(), resumed.weights()) < TOLERANCE


# --- patient level ---

#: Up to four images a patient, which `PatientPrivacy` uses whole; as many patients as groups.
GROUPS = np.concatenate([[0], [1, 1, 2, 2, 2], np.repeat(np.arange(3, 11), [1, 2, 3, 4, 4, 3, 2, 1])])


def patient_federation(folders, noise, config):
    images, labels, parts = hospitals(SIZES)
    process = build_process(
        algorithm_named("fedavg"), softmax_regression, LocalSettings(learning_rate=0.1, momentum=0.0),
        ServerSettings(num_examples=sum(SIZES)), trainer_type=trainer_of(config, noise),
        aggregator=aggregator_of(config, noise),
    )
    files = write_client_files(folders / "patients", images, labels, parts, groups=GROUPS)
    return FederatedLearner(process, files, CLASS_WEIGHTS, clients_per_round=len(SIZES), seed=SEED)


def steps_over_patients(weights, part, num_steps):
    """global - local weights of gradient descent on the mean over patients of each one's mean loss, in float64."""
    images, labels, _ = hospitals(SIZES)
    pixels, local = images.reshape(len(images), -1) / 255.0, [weight.astype(np.float64) for weight in weights]
    for _ in range(num_steps):
        of_patient = [
            reference.softmax_regression_gradient(local, pixels[own], labels[own], CLASS_WEIGHTS)
            for own in (part[GROUPS[part] == patient] for patient in np.unique(GROUPS[part]))
        ]
        local = [w - 0.1 * np.mean(parts, axis=0) for w, *parts in zip(local, *of_patient, strict=True)]
    return [w - v for w, v in zip(weights, local, strict=True)]


def test_without_noise_patient_level_federation_is_gradient_descent_over_patients(folders):
    """Through the files and TFF's process: all patients in each of two steps a round, a huge clip."""
    noise = Noise(PrivacyTerms("patient", 1e-3, steps=4), 0.0, steps_per_round=2, num_units=1)
    learner, parts = patient_federation(folders, noise, private(privacy_unit="patient")), hospitals(SIZES)[2]
    expected = learner.weights()
    for round_num in (1, 2):
        deltas = [steps_over_patients(expected, part, 2) for part in parts]
        expected = reference.federated_average(expected, deltas, SIZES)
        assert learner.do_round(round_num) == {"0": 0.0, "1": 0.0, "2": 0.0}  # no loss is told
        assert distance(learner.weights(), expected) < TOLERANCE
    # One step less would be seen.
    one, two = (
        reference.federated_average(expected, [steps_over_patients(expected, part, steps) for part in parts], SIZES)
        for steps in (1, 2)
    )
    assert distance(one, two) > 1e-3


def test_patient_level_with_encrypted_sums_is_patient_level_without(monkeypatch):
    """As `training` sets both up: the same patients, the same noise, the same budget; only the sum is encrypted."""
    fields = {
        "privacy_unit": "patient", "delta": 1e-2, "clipping_norm": 0.5, "client_batch_size": 4, "num_clients": 3,
    }  # fmt: skip
    data, config = made_patients(60, size_px=16), private(**fields)
    held = share_out(data, config)
    # What the accountant would ask for is the subject of other tests.
    monkeypatch.setattr(noise_plan, "noise_multiplier_for", lambda epsilon, terms: 2.0)
    plain, secret = (
        training.federated_learner(one, data, held) for one in (config, config.model_copy(update={"encrypted": True}))
    )
    start = plain.weights()
    assert distance(start, secret.weights()) == 0
    for round_num in (1, 2):
        plain.do_round(round_num)
        secret.do_round(round_num)
        assert distance(plain.weights(), secret.weights()) < TOLERANCE
    assert distance(plain.weights(), start) > 1e-2
    assert plain.budget.state() == secret.budget.state() and plain.budget.spent > 0


# --- hospital level ---


def hospital_federation(folders, noise_multiplier, clip, **fields):
    config = private(privacy_unit="hospital", clipping_norm=clip, **fields)
    noise = Noise(PrivacyTerms("hospital", 1e-3, steps=2), noise_multiplier, steps_per_round=1, num_units=len(SIZES))
    images, labels, parts = hospitals(SIZES)
    process = build_process(
        algorithm_named("fedavg"), softmax_regression, SETTINGS, ServerSettings(num_examples=sum(SIZES)),
        trainer_type=trainer_of(config, noise), aggregator=aggregator_of(config, noise),
    )
    files = write_client_files(folders / "hospitals", images, labels, parts)
    return FederatedLearner(process, files, ONES, clients_per_round=len(SIZES), seed=SEED)


def norm(parts):
    return float(np.sqrt(sum((part.astype(np.float64) ** 2).sum() for part in parts)))


@pytest.mark.parametrize("adaptive", [False, True])
def test_without_noise_hospital_level_is_the_mean_of_hospitals(folders, adaptive):
    """Each hospital counts alike, whatever its number of images."""
    learner = hospital_federation(folders, 0.0, 1e6, adaptive_clipping=adaptive)
    expected = learner.weights()
    for round_num in (1, 2):
        deltas = deltas_by_hand(expected, SIZES, SETTINGS, round_num)
        by_examples = reference.federated_average(expected, deltas, SIZES)
        expected = reference.federated_average(expected, deltas, [1, 1, 1])
        learner.do_round(round_num)
        assert distance(learner.weights(), expected) < TOLERANCE and distance(learner.weights(), by_examples) > 1e-3


def test_a_hospital_moves_the_mean_by_its_share_of_the_clipping_norm(folders):
    start = hospital_federation(folders, 0.0, 1e6).weights()
    deltas = deltas_by_hand(start, SIZES, SETTINGS, 1)
    norms = sorted(norm(delta) for delta in deltas)
    clip = (norms[0] + norms[1]) / 2  # one hospital is below, two are above
    learner = hospital_federation(folders, 0.0, clip)
    learner.do_round(1)
    clipped = [[part * min(1.0, clip / norm(delta)) for part in delta] for delta in deltas]
    assert distance(learner.weights(), reference.federated_average(start, clipped, [1, 1, 1])) < TOLERANCE
    assert norm([a - b for a, b in zip(learner.weights(), start, strict=True)]) <= clip


@pytest.mark.parametrize(("adaptive", "spread"), [(False, 0.7), (True, 0.7 / np.sqrt(1 - 0.25))])
def test_the_noise_of_the_mean_is_what_is_accounted(folders, adaptive, spread):
    """Deviation z C / n of the mean. Adaptive: the count of clipped updates has deviation z; a quarter of 1 / z^2.

    The noise is the operating system's: a round that is done again has another one, and no seed repeats it, hence five
    deviations, once in a million runs.
    """
    clip, again = 20.0, 12
    learner = hospital_federation(folders, 0.7, clip, adaptive_clipping=adaptive)
    start = learner.weights()
    deltas = deltas_by_hand(start, SIZES, SETTINGS, 1)
    assert max(norm(delta) for delta in deltas) < clip
    expected, state, draws = reference.federated_average(start, deltas, [1, 1, 1]), learner.state(), []
    for _ in range(again):
        learner.restore(state)
        learner.do_round(1)
        draws.append(np.concatenate([(a - b).ravel() for a, b in zip(learner.weights(), expected, strict=True)]))
    assert np.abs(np.corrcoef(draws) - np.eye(again)).max() < 0.5
    noise, deviation = np.concatenate(draws), spread * clip / len(SIZES)
    assert abs(noise.std() / deviation - 1) < 5 / np.sqrt(2 * len(noise))
    assert abs(noise.mean()) < 5 * deviation / np.sqrt(len(noise))


def test_only_hospital_level_has_an_aggregator_and_only_patient_level_a_trainer_of_its_own():
    plain, patient = config_of(), private(privacy_unit="patient", clipping_norm=2.0)
    noise = Noise(PrivacyTerms("patient", 1e-3, 8, "poisson", 0.25), 1.5, steps_per_round=4, num_units=9)
    assert aggregator_of(plain, None) is None and aggregator_of(patient, noise) is None
    assert trainer_of(plain, None) is LocalTrainer
    assert trainer_of(private(privacy_unit="hospital"), noise) is LocalTrainer
    made = trainer_of(patient, noise)(softmax_regression(), SETTINGS).privacy
    assert (made.clipping_norm, made.noise_multiplier, made.sampling_rate, made.steps) == (2.0, 1.5, 0.25, 4)
