"""The training plan: what a researcher asks hospitals to compute, hashed and signed, and rendered for who must decide."""

import base64
import dataclasses
import difflib
import hashlib
import json
import math
from typing import Literal

import pydantic
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fl_utils.config import ConfigError, ExperimentConfig
from fl_utils.deployment.nvflare.identity import Person, is_signed, person_of, sign
from fl_utils.deployment.nvflare.settings import OUTPUTS, RuleBroken
from fl_utils.trust.terms import PrivacyTerms

#: Methods whose hospitals keep nothing between rounds, and whose server adds nothing of its own.
METHODS = ("fedavg", "fedprox")
USUAL_OUTPUTS = ("model_update", "num_examples", "training_loss", "score_counts")
#: Letters that are drawn as nothing, and yet count as letters.
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"
#: An epsilon from which on it does not matter by how much.
_FAR = 30.0


class NoiseTerms(pydantic.BaseModel):
    """DP-SGD at patient level, the same at each hospital.

    Attributes:
      noise_multiplier: z; noise of standard deviation z times `config.clipping_norm` on each sum of clipped gradients.
      sampling_rate: chance of a patient to be in a step.
      steps: of a round.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    noise_multiplier: float = pydantic.Field(ge=0.01, le=1000)  # where epsilon can be worked out in seconds
    sampling_rate: float = pydantic.Field(gt=0, le=1)
    steps: int = pydantic.Field(ge=1)


class TrainingPlan(pydantic.BaseModel):
    """What is to be computed, all of it: a hospital that has approved a plan knows what will happen.

    Attributes:
      title, purpose: for who decides.
      config: the training; `dataset` is named as in the hospitals' cards.
      hospitals: who is asked, in the order of the configuration's clients, which decides on batches and seeds.
      class_names: in the order of the labels.
      class_weights: of the loss, a number a class; 1 each for plain cross-entropy.
      min_hospitals: updates that a round needs.
      round_timeout_s: time limit of a hospital's answer.
      noise: DP-SGD; None where the configuration has no differential privacy.
      encrypted: updates travel encrypted (CKKS, NVFlare's filters), and the server sees none of them nor the model.
      outputs: what leaves the hospital, of `settings.OUTPUTS`.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = 1
    title: str = pydantic.Field(min_length=1, max_length=120)
    purpose: str = pydantic.Field(min_length=1, max_length=2000)
    config: ExperimentConfig
    hospitals: tuple[str, ...] = pydantic.Field(min_length=2)
    class_names: tuple[str, ...] = pydantic.Field(min_length=2)
    class_weights: tuple[float, ...]
    min_hospitals: int = pydantic.Field(ge=1)
    round_timeout_s: int = pydantic.Field(default=300, ge=1)
    noise: NoiseTerms | None = None
    encrypted: bool = False
    outputs: tuple[str, ...] = USUAL_OUTPUTS

    @pydantic.model_validator(mode="after")
    def _fits_together(self):
        config = self.config
        if config.method not in METHODS or config.segments or config.encrypted or config.attack or config.aggregator:
            raise ValueError(f"method {config.method!r} with model {config.model!r} cannot be planned; expected a classifier by one "
                             f"of {', '.join(METHODS)}, without attack and without another aggregator")
        if config.num_clients != len(self.hospitals) or len(set(self.hospitals)) != len(self.hospitals):
            raise ValueError(f"hospitals are {', '.join(self.hospitals)}; expected {config.num_clients} different ones")
        if config.cohort_size != config.num_clients:
            raise ValueError("clients_per_round is set; all hospitals of a plan take part in each round")
        if config.privacy_unit == "hospital" or (config.privacy_unit is None) != (self.noise is None):
            raise ValueError("noise and privacy_unit do not fit: expected 'patient' with noise, or neither")
        if len(self.class_weights) != len(self.class_names) or not all(0 <= weight < math.inf for weight in self.class_weights):
            raise ValueError(f"class_weights are {self.class_weights}; expected a number of at least 0 for each of {len(self.class_names)} classes")
        if len(set(self.class_names)) != len(self.class_names) or not all(map(_can_be_listed, (*self.hospitals, *self.class_names))):
            raise ValueError(f"hospitals are {self.hospitals}, class_names {self.class_names}; expected different words, without commas")
        if self.encrypted and config.server_learning_rate != 1:
            raise ValueError(f"server_learning_rate is {config.server_learning_rate:g} of an encrypted plan; the server adds what it cannot read: expected 1")
        if self.noise is not None and self.noise.steps * config.total_rounds > 1_000_000:
            raise ValueError(f"{config.total_rounds} rounds of {self.noise.steps} steps with noise; expected at most 1000000 steps in all")
        if self.min_hospitals > len(self.hospitals):
            raise ValueError(f"min_hospitals is {self.min_hospitals} of {len(self.hospitals)} hospitals")
        unknown = set(self.outputs) - set(OUTPUTS)
        if unknown or "model_update" not in self.outputs:
            raise ValueError(f"outputs are {', '.join(self.outputs)}; expected model_update and others of {', '.join(OUTPUTS)}")
        return self

    @property
    def hash(self) -> str:
        """Hex SHA-256 of all of it; what an owner approves."""
        return hashlib.sha256(canonical(self)).hexdigest()

    @property
    def loss(self) -> str:
        return "cross-entropy" + (", classes weighted" if len(set(self.class_weights)) > 1 else "")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.config.image_size_px, self.config.image_size_px, 1)

    def round_terms(self, rounds: int = 1) -> PrivacyTerms:
        """What the noise of so many rounds is about; only with noise."""
        rate = self.noise.sampling_rate
        return PrivacyTerms("patient", self.config.delta, self.noise.steps * rounds, "all" if rate == 1 else "poisson", rate)


def make_plan(**fields) -> TrainingPlan:
    """A plan from its fields.

    Raises:
      ConfigError: names each field that is wrong.
    """
    try:
        return TrainingPlan(**fields)
    except pydantic.ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'plan'}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"This plan cannot be: {wrong}.") from None


def canonical(plan: TrainingPlan) -> bytes:
    """The bytes that are hashed and signed: the same for equal plans."""
    return json.dumps(plan.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()


@dataclasses.dataclass(frozen=True)
class SignedPlan:
    """A plan as it was received.

    Attributes:
      plan: what was asked.
      person: who signed it.
      content: the file's bytes.
    """

    plan: TrainingPlan
    person: Person
    content: bytes


def sign_plan(plan: TrainingPlan, key: bytes, certificate: bytes) -> bytes:
    """The file that a researcher hands in: plan, certificate, signature.

    Args:
      plan: to be signed.
      key: PEM bytes of the person's private key (startup/client.key).
      certificate: PEM bytes of the person's certificate (startup/client.crt).
    """
    return _file(plan, certificate, sign(canonical(plan), key))


def read_signed(content: bytes, authority: bytes, now=None) -> SignedPlan:
    """A signed plan, checked: whole, signed, by a person of this consortium.

    Args:
      content: the file's bytes.
      authority: the consortium's certificate, PEM bytes.
      now: default the present, UTC.
    Raises:
      RuleBroken: "signature" or "identity".
    """
    try:
        body = json.loads(content)
        plan, certificate = make_plan(**body["plan"]), body["certificate"].encode()
        signature = base64.b64decode(body["signature"], validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise RuleBroken("signature", f"this is no signed plan ({type(error).__name__}: {error}). Make one with `fl-utils consortium plan`.") from None
    person = person_of(certificate, authority, now)
    if not is_signed(canonical(plan), signature, certificate):
        raise RuleBroken("signature", f"the plan is not what {person.name} signed: it was changed afterwards.")
    if content != _file(plan, certificate, signature):  # one plan, one file: nobody reads there what was not signed
        raise RuleBroken("signature", f"the file is not as it was written when {person.name} signed it: something was added or moved in it.")
    return SignedPlan(plan, person, content)


def _file(plan: TrainingPlan, certificate: bytes, signature: bytes) -> bytes:
    text = x509.load_pem_x509_certificate(certificate).public_bytes(Encoding.PEM).decode()  # however its lines end where it was read
    body = {"plan": plan.model_dump(mode="json"), "certificate": text, "signature": base64.b64encode(signature).decode()}
    return (json.dumps(body, indent=2) + "\n").encode()


def rendered(plan: TrainingPlan) -> str:
    """A plan in words, a line a fact, for who decides on it; equal plans give equal lines."""
    config, noise = plan.config, plan.noise
    private = "none" if noise is None else (
        f"DP-SGD at patient level, epsilon {_epsilon(plan)} at delta {config.delta:g} over all rounds, planned for {config.epsilon:g}: each patient's gradient clipped to "
        f"{config.clipping_norm:g}, noise multiplier {noise.noise_multiplier:.6g}, {noise.steps} steps a round with {noise.sampling_rate:.6g} of the patients each"
    )
    shown = {"dataset", "model", "method", "total_rounds", "client_learning_rate", "client_batch_size", "client_epochs_per_round",
             "image_size_px", "augment", "proximal_strength", "epsilon", "delta", "clipping_norm", "privacy_unit", "num_clients", "seed"}
    others = {name: value for name, value in sorted(config.model_dump(mode="json").items()) if name not in shown and value is not None}
    lines = [
        ("Title", plan.title), ("Purpose", plan.purpose), ("Data set", config.dataset), ("Hospitals", ", ".join(plan.hospitals)),
        ("Classes", ", ".join(plan.class_names)), ("Model", f"{config.model}, grey images of {config.image_size_px} x {config.image_size_px} pixels"),
        ("Loss", plan.loss + ": " + ", ".join(f"{name} {weight:.6g}" for name, weight in zip(plan.class_names, plan.class_weights))),
        ("Method", config.method + (f", proximal strength {config.proximal_strength:g}" if config.method == "fedprox" else "")),
        ("Rounds", f"{config.total_rounds}, each with at least {plan.min_hospitals} hospitals, at most {plan.round_timeout_s} s"),
        ("In a round", f"{config.client_epochs_per_round} passes over the hospital's training images, batches of {config.client_batch_size}, "
                       f"learning rate {config.client_learning_rate:g}" + (", images moved and turned at random" if config.augment else "")),
        ("Differential privacy", private), ("Encrypted sums", "yes, CKKS" if plan.encrypted else "no"),
        *(("Leaves the hospital", f"{name}: {OUTPUTS[name]}") for name in plan.outputs),
        ("Seed", str(config.seed)), *((f"config.{name}", json.dumps(value)) for name, value in others.items()),
    ]
    return "\n".join(f"{name}: {visible(' '.join(value.split()))}" for name, value in lines)  # no text can look like a line of its own


def _can_be_listed(name: str) -> bool:
    """Whether a name is seen as one where names are listed."""
    return bool(name) and visible(" ".join(name.split())) == name and "," not in name


def _epsilon(plan: TrainingPlan) -> str:
    """What the plan's noise comes to, whatever its author says it does."""
    from fl_utils.trust.accounting import epsilon_of

    release = plan.noise.noise_multiplier, plan.round_terms(plan.config.total_rounds)
    try:
        rough = epsilon_of(*release, "rdp")  # quick, and too large; far from what protects, the exact one would take long
        return f"{epsilon_of(*release) if rough < _FAR else rough:.3g}"
    except (ValueError, OverflowError):
        return "that cannot be worked out"


def visible(text: str) -> str:
    """A text from outside, as it is shown: signs that cannot be seen, or turn a terminal or the order of letters, as escapes."""
    seen = (sign in "\n\t" or (sign.isprintable() and sign not in _BLANK) for sign in text)
    return "".join(sign if can_be_seen else sign.encode("unicode_escape").decode() for sign, can_be_seen in zip(text, seen))


def difference(plan: TrainingPlan, before: TrainingPlan | None) -> list[str]:
    """Lines of the rendered plan that differ from those of another one: "- old", "+ new"; all are new where there is none."""
    old = rendered(before).splitlines() if before else []
    return [line for line in difflib.ndiff(old, rendered(plan).splitlines()) if line[:2] in ("- ", "+ ")]
