"""What a federation agrees on before it starts, and where each of its members keeps what is his.

    federation/
      federation.json            what all have agreed on (this module)
      authority/                 ca.key, ca.crt: stays with who set the federation up
      server/                    server.crt, server.key, ca.crt, hospitals/0.pub ...; checkpoint, model, log
      hospital_0/                federation.json, ca.crt, key, key.pub, data/; log of what was sent, privacy budget

A hospital is given its own folder, and nothing else of the federation.
"""

import hashlib
import json
from pathlib import Path
from typing import Literal

import pydantic

from fl_utils.config import ConfigError, ExperimentConfig
from fl_utils.files import write_atomically

FILE = "federation.json"
#: Rules for combining updates that need neither state nor the server's own images.
RULES = ("coordinate_median", "trimmed_mean", "krum", "multi_krum", "geometric_median")
#: Methods whose hospitals keep nothing between rounds, and send their update and nothing else.
METHODS = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad")


class FederationError(RuntimeError):
    """The federation cannot go on, or was set up in a way that cannot be; the text says what to do."""


class SecureSum(pydantic.BaseModel):
    """SecAgg+: the server learns the hospitals' sum and no single update. See `secure`.

    Attributes:
      threshold: hospitals that must be there to the end of a round.
      clipping_range: each number of an update is clipped to plus or minus this.
      stage_timeout_s: time limit of each of the four stages.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    threshold: int = pydantic.Field(ge=2)
    clipping_range: float = pydantic.Field(default=3.0, gt=0, allow_inf_nan=False)
    stage_timeout_s: float = pydantic.Field(default=60.0, gt=0)


class Federation(pydantic.BaseModel):
    """What all members have agreed on; each has its own copy, and the server's must equal the hospital's.

    Attributes:
      config: the training; its `num_clients` hospitals are numbered from 0.
      class_names: in the order of the labels.
      address: host:port where the server listens to hospitals.
      min_hospitals: updates that a round needs to give a new model.
      join_timeout_s: the training begins then with those who are there, at least `min_hospitals`, and others join
        later; None waits for all.
      round_timeout_s: time limit of a hospital's answer.
      max_void_rounds: rounds in a row without enough updates, after which the server stops.
      secure: None adds the updates in plain.
      transport: "tls"; "plain" knows no keys either, is for measurements only, and stays on loopback.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    format: int = pydantic.Field(default=1, ge=1, le=1)
    config: ExperimentConfig
    class_names: tuple[str, ...] = pydantic.Field(min_length=2)
    address: str = "127.0.0.1:9092"
    min_hospitals: int = pydantic.Field(ge=1)
    join_timeout_s: float | None = pydantic.Field(default=None, gt=0)
    round_timeout_s: float = pydantic.Field(default=120.0, gt=0)
    max_void_rounds: int = pydantic.Field(default=3, ge=1)
    secure: SecureSum | None = None
    transport: Literal["tls", "plain"] = "tls"

    @pydantic.model_validator(mode="after")
    def _fits_together(self):
        config = self.config
        if config.method not in METHODS or config.segments or config.encrypted or config.attack:
            raise ValueError(
                f"method {config.method!r} with model {config.model!r} cannot be deployed; expected a classifier by one of "
                f"{', '.join(METHODS)}, without CKKS and without an attack"
            )
        if config.cohort_size != config.num_clients:
            raise ValueError("clients_per_round is set; all hospitals of a deployed federation take part in each round")
        if config.aggregator not in (None, "mean", *RULES):
            raise ValueError(f"aggregator {config.aggregator!r} cannot be deployed; expected one of {', '.join(RULES)}")
        if config.privacy_unit == "hospital":
            raise ValueError("privacy_unit 'hospital' cannot be deployed; expected 'patient' or none")
        if self.min_hospitals > config.num_clients:
            raise ValueError(f"min_hospitals is {self.min_hospitals} of {config.num_clients} hospitals")
        if self.secure and config.aggregator:
            raise ValueError(
                f"secure with aggregator {config.aggregator!r}: a rule needs to see each update, a secure sum hides them"
            )
        if self.secure and not config.num_clients < 2 * self.secure.threshold <= 2 * config.num_clients:
            raise ValueError(
                f"secure.threshold is {self.secure.threshold} of {config.num_clients} hospitals; expected more than half, to all"
            )
        if self.secure and self.min_hospitals > self.secure.threshold:
            # The server would learn a sum, not use it, and learn another of the same updates: their difference is an update.
            raise ValueError(
                f"min_hospitals is {self.min_hospitals} and secure.threshold {self.secure.threshold}; expected at most the threshold: "
                "a round that has a sum is not to be repeated"
            )
        if _split(self.address)[0] not in ("127.0.0.1", "localhost", "::1") and self.transport == "plain":
            raise ValueError(f"transport 'plain' at {self.address}: what is neither encrypted nor authenticated stays on loopback")
        return self

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of all that was agreed on, the address excepted: it may differ behind a gateway."""
        agreed = self.model_dump(mode="json", exclude={"address"})
        return hashlib.sha256(json.dumps(agreed, sort_keys=True).encode()).hexdigest()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.config.image_size_px, self.config.image_size_px, 1)

    @property
    def host_and_port(self) -> tuple[str, int]:
        return _split(self.address)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"address is {address!r}; expected host:port, e.g. 127.0.0.1:9092")
    return host.strip("[]"), int(port)


def make_federation(**fields) -> Federation:
    """A federation from its fields.

    Raises:
      ConfigError: names each field that is wrong.
    """
    try:
        return Federation(**fields)
    except pydantic.ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'federation'}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"This federation cannot be: {wrong}.") from None


def read_federation(folder: Path) -> Federation:
    """What was agreed on, from a member's folder.

    Raises:
      FederationError: there is no such file, or it is not one.
    """
    path = Path(folder) / FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return make_federation(**fields)
    except FileNotFoundError:
        raise FederationError(
            f"There is no {FILE} in {folder}. Make a federation with `fl-utils federation init`, or name its folder with --folder."
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise FederationError(f"{path} cannot be used: {error}") from error


def write_federation(folder: Path, federation: Federation) -> None:
    """Writes the agreement into a member's folder."""
    text = json.dumps(federation.model_dump(mode="json", exclude_defaults=True) | {"format": 1}, indent=2) + "\n"
    write_atomically(Path(folder) / FILE, lambda file: file.write(text.encode()))
    (Path(folder) / FILE).chmod(0o644)


def server_folder(folder: Path) -> Path:
    return Path(folder) / "server"


def hospital_folder(folder: Path, hospital: int) -> Path:
    """A hospital's folder: below the federation's, or the folder itself where it was given to the hospital alone."""
    own = Path(folder) / f"hospital_{hospital}"
    return own if own.is_dir() or not (Path(folder) / "key").is_file() else Path(folder)
