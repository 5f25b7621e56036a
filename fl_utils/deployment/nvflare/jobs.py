"""What is submitted to NVFlare: the folder that a plan stands for, and nothing that a plan does not decide.

A job names classes, and NVFlare builds them. So a hospital does not look through a job for what might be bad: it makes
the plan's own job anew and compares. Classes outside of this package's and NVFlare's few are refused besides, by the
allow list of each member (`consortium.ALLOWED`).
"""

import base64
import json
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nvflare.lighter.tool_consts import NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE

from fl_utils.deployment.nvflare.identity import Person, is_signed, person_of, sign
from fl_utils.deployment.nvflare.plan import TrainingPlan, read_signed
from fl_utils.deployment.nvflare.settings import RuleBroken

APP, ASKED, SERVER_CONFIG = "app", "asked.json", "config_fed_server.json"
TRAIN, FINISH, CARDS = "train", "finish", "cards"
_HERE = "fl_utils.deployment.nvflare"
_HE = "nvflare.app_opt.he"
#: A question for cards holds for so long; it says when it was signed.
_FRESH = timedelta(minutes=15)
#: What NVFlare adds to the folders of a job that is signed.
_NVFLARES = (NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE)


def write_training_job(folder: Path, signed: bytes, plan: TrainingPlan) -> Path:
    """Writes the job of a signed plan; returns its folder, which is named after the plan's hash."""
    name = f"train_{plan.hash[:12]}"
    return _write_job(Path(folder) / name, signed, training_configs(plan.encrypted), plan.hospitals, plan.min_hospitals)


def write_cards_job(folder: Path, hospitals: Sequence[str], key: bytes, certificate: bytes) -> Path:
    """Writes the job that asks hospitals for the cards of their data sets; returns its folder."""
    content = json.dumps({"ask": CARDS, "time_utc": datetime.now(UTC).isoformat(), "nonce": secrets.token_hex(8)}, sort_keys=True)
    asked = {"cards": content, "certificate": certificate.decode(), "signature": base64.b64encode(sign(content.encode(), key)).decode()}
    return _write_job(Path(folder) / "cards", json.dumps(asked).encode(), cards_configs(), hospitals, 1)


def read_cards_question(content: bytes, authority: bytes, now: datetime | None = None) -> Person:
    """Who asks for cards.

    Raises:
      RuleBroken: "signature" or "identity".
    """
    now = now or datetime.now(UTC)
    try:
        asked = json.loads(content)
        text, certificate, signature = asked["cards"], asked["certificate"].encode(), base64.b64decode(asked["signature"], validate=True)
        said = datetime.fromisoformat(json.loads(text)["time_utc"])
        fresh = abs(now - said) <= _FRESH
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RuleBroken("signature", f"this is no question for cards ({type(error).__name__}: {error}).") from None
    person = person_of(certificate, authority, now)
    if not is_signed(text.encode(), signature, certificate):
        raise RuleBroken("signature", f"the question is not what {person.name} signed.")
    if not fresh:
        raise RuleBroken("signature", f"the question was signed at {said:%Y-%m-%d %H:%M} UTC; ask anew.")
    return person


def is_cards_question(content: bytes) -> bool:
    """Whether what was asked is a question for cards, not a plan."""
    try:
        return "cards" in json.loads(content)
    except (ValueError, TypeError):
        return False


def check_job(app: Path, content: bytes, authority: bytes) -> None:
    """Whether an app that was sent to a hospital is the one that its plan, or question, stands for.

    Raises:
      RuleBroken: "job": there is something else in it; "signature" where the plan itself is none.
    """
    configs = cards_configs() if is_cards_question(content) else training_configs(read_signed(content, authority).plan.encrypted)
    expected = {f"config/{name}": _text(config) for name, config in configs.items()} | {f"config/{ASKED}": content}
    found = {
        str(path.relative_to(app)): path for path in Path(app).rglob("*")
        if (path.is_symlink() or not path.is_dir()) and path.name not in _NVFLARES
    }
    for name in sorted(set(found) | set(expected)):
        if name not in expected:
            raise RuleBroken("job", f"it holds {name}, which no plan asks for.")
        if name not in found or found[name].is_symlink() or found[name].read_bytes() != expected[name]:
            raise RuleBroken("job", f"{name} is not what the plan stands for. Submit the plan with `fl-utils consortium train`.")


def training_configs(encrypted: bool) -> dict[str, dict]:
    """NVFlare's configurations of a training: file name -> content. All else the parts of a job read in the plan."""
    rounds = [TRAIN, FINISH]
    client = {
        "format_version": 2,
        "executors": [{"tasks": rounds, "executor": {"path": f"{_HERE}.site_parts.PlanExecutor", "args": {}}}],
        "task_data_filters": [{"tasks": rounds, "filters": [{"path": f"{_HE}.model_decryptor.HEModelDecryptor", "args": {}}]}] if encrypted else [],
        "task_result_filters": [
            {"tasks": [TRAIN], "filters": [{"path": f"{_HE}.model_encryptor.HEModelEncryptor", "args": {"weigh_by_local_iter": True}}]}
        ] if encrypted else [],
        "components": [],
    }
    components = [
        {"id": "aggregator", "path": f"{_HE}.intime_accumulate_model_aggregator.HEInTimeAccumulateWeightedAggregator",
         "args": {"weigh_by_local_iter": False, "expected_data_kind": "WEIGHT_DIFF"}},
        {"id": "shareable_generator", "path": f"{_HE}.model_shareable_generator.HEModelShareableGenerator", "args": {}},
    ] if encrypted else []
    server = {
        "format_version": 2, "workflows": [{"id": "training", "path": f"{_HERE}.server_parts.PlannedTraining", "args": {}}],
        "components": components, "task_data_filters": [], "task_result_filters": [],
    }
    return {"config_fed_client.json": client, SERVER_CONFIG: server}


def cards_configs() -> dict[str, dict]:
    """NVFlare's configurations of a question for cards."""
    executor = {"path": f"{_HERE}.site_parts.CardsExecutor", "args": {}}
    client = {"format_version": 2, "executors": [{"tasks": [CARDS], "executor": executor}], "task_data_filters": [], "task_result_filters": [], "components": []}
    workflow = {"id": "cards", "path": f"{_HERE}.server_parts.CardsRound", "args": {}}
    server = {"format_version": 2, "workflows": [workflow], "components": [], "task_data_filters": [], "task_result_filters": []}
    return {"config_fed_client.json": client, SERVER_CONFIG: server}


def server_configs() -> list[bytes]:
    """What the server's configuration may be, whatever the plan: text of `SERVER_CONFIG`."""
    return [_text(configs[SERVER_CONFIG]) for configs in (cards_configs(), training_configs(False), training_configs(True))]


def _write_job(folder: Path, asked: bytes, configs: dict[str, dict], hospitals: Sequence[str], min_hospitals: int) -> Path:
    config = folder / APP / "config"
    config.mkdir(parents=True)
    for name, content in configs.items():
        (config / name).write_bytes(_text(content))
    (config / ASKED).write_bytes(asked)
    meta = {
        "name": folder.name, "resource_spec": {}, "deploy_map": {APP: ["server", *hospitals]}, "min_clients": min_hospitals,
        "mandatory_clients": [],
    }
    (folder / "meta.json").write_bytes(_text(meta))
    return folder


def _text(content: dict) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
