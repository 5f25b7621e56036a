"""What NVFlare builds in a hospital: the rules at the door, the training of an approved plan, the rule at the exit.

Each of them reads the hospital's own store and the consortium's authority; nothing that was submitted is believed, and no
argument is taken from a job. `SubmissionRules` works in the site's own process, the others in the process of a job.
"""

import hashlib
import json
import re
import time
from pathlib import Path

import numpy as np
from nvflare.apis.app_validation import AppValidator
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from fl_utils.deployment.nvflare import rules
from fl_utils.deployment.nvflare.identity import read_revocations
from fl_utils.deployment.nvflare.jobs import ASKED, CARDS, TRAIN, check_job, is_cards_question, read_cards_question
from fl_utils.deployment.nvflare.plan import SignedPlan, read_signed
from fl_utils.deployment.nvflare.settings import DATA, MODELS, REVOKED, RuleBroken
from fl_utils.deployment.nvflare.store import Store
from fl_utils.files import write_atomically

#: Of an answer, beside the weights: DXO's name -> name of `settings.OUTPUTS`.
LOSS, JUDGED = "loss", "judged"
REASON = "reason"


class Site:
    """A hospital's folder, as its rules see it.

    Args:
      folder: NVFlare's workspace of the hospital.
    """

    def __init__(self, folder: Path):
        self.folder, self.store = Path(folder), Store(folder)
        self.authority = (self.folder / "startup" / "rootCA.pem").read_bytes()
        self.name = json.loads((self.folder / "startup" / "fed_client.json").read_text())["client"]["fqsn"]

    def revoked(self) -> frozenset[str]:
        """Serials of revoked certificates; the list may have changed since the last look, never to an older one."""
        number, serials = read_revocations(self.folder / REVOKED, self.authority)
        newest = self.store.newest_revocations(number)
        if number < newest:
            raise RuleBroken("revoked", f"{REVOKED} is list {number}, and list {newest} was seen here before; get the newest from the project admin.")
        return serials


class SubmissionRules(AppValidator):
    """Decides on every app that the server sends to this hospital, before it is unpacked for a run."""

    def validate(self, app_folder: str) -> tuple[str, dict]:
        """See `nvflare.apis.app_validation.AppValidator`: ("", {}) lets it in, a text refuses it."""
        site, who = Site(Path.cwd()), {}
        try:
            content = _asked(Path(app_folder) / "config")
            if is_cards_question(content):
                person = read_cards_question(content, site.authority)
                who = {"person": person.name, "role": person.role}
                check_job(Path(app_folder), content, site.authority)
                rules.check_person(site.store, person, hospital=site.name, revoked_serials=site.revoked())
                site.store.log.write("cards asked for", **who)
                return "", {}
            signed = read_signed(content, site.authority)
            who = {"person": signed.person.name, "role": signed.person.role, "plan": signed.plan.hash}
            check_job(Path(app_folder), content, site.authority)
            try:
                rules.check_submission(site.store, signed, hospital=site.name, authority=site.authority, revoked_serials=site.revoked())
            except RuleBroken as error:
                if error.rule == "plan" and site.store.request(signed.plan.hash, signed.person.name) is None:
                    site.store.file_request(signed)
                raise
            site.store.log.write("submission accepted", **who)
            return "", {}
        except RuleBroken as error:
            site.store.log.write("refused", rule=error.rule, reason=str(error), **who)
            return str(error), {}
        except Exception as error:  # whatever it is, it must not let a job in
            site.store.log.write("refused", rule="job", reason=f"{type(error).__name__}: {error}", **who)
            return f"Rule 'job': it cannot be read ({type(error).__name__}).", {}


class _OfJob:
    """What the parts in the process of a job share: where the site is, and what was asked."""

    def site(self, fl_ctx: FLContext) -> Site:
        if not hasattr(self, "_site"):
            self._site = Site(Path(fl_ctx.get_engine().get_workspace().get_root_dir()))
        return self._site

    def content(self, fl_ctx: FLContext) -> bytes:
        return _asked(Path(fl_ctx.get_engine().get_workspace().get_app_config_dir(fl_ctx.get_job_id())))

    def signed(self, fl_ctx: FLContext) -> SignedPlan:
        if not hasattr(self, "_signed"):
            self._signed = read_signed(self.content(fl_ctx), self.site(fl_ctx).authority)
        return self._signed


class CardsExecutor(_OfJob, Executor):
    """Answers with the cards that the asking person's role may see."""

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        site = self.site(fl_ctx)
        try:
            person = read_cards_question(self.content(fl_ctx), site.authority)
            cards = [one.card for one in site.store.datasets() if site.store.may(one.name, person.role, "see")]
        except RuleBroken as error:
            return _refusal(error)
        site.store.log.write("cards given", person=person.name, cards=[card["name"] for card in cards])
        answer = Shareable()
        answer[CARDS] = json.dumps(cards)
        return answer


class PlanExecutor(_OfJob, Executor):
    """Trains an approved plan on the hospital's images, a round at a time, as long as every rule holds."""

    def __init__(self):
        super().__init__()
        self._hospital = None
        self._ended, self._rounds = False, 0

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type in (EventType.END_RUN, EventType.ABORT_TASK) and self._hospital is not None and not self._ended:
            self._end(fl_ctx, "ended early")

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        site, who = self.site(fl_ctx), {"run": fl_ctx.get_job_id()}
        round_num = shareable.get_header(AppConstants.CURRENT_ROUND)
        try:
            signed = self.signed(fl_ctx)
            who |= {"person": signed.person.name, "plan": signed.plan.hash, "round": round_num}
            rules.check_still(site.store, signed.person, signed.plan, hospital=site.name, revoked_serials=site.revoked())
            self._check_asked(task_name, round_num, signed.plan.config.total_rounds)
            if self._hospital is None:
                self._begin(site, signed, fl_ctx)
            shapes = weight_shapes(signed.plan)  # an encrypted model comes flat
            weights = [np.asarray(value, np.float32).reshape(shape) for value, shape in zip(_arrays(shareable), shapes, strict=True)]
            return self._train(site, signed, weights, round_num, fl_ctx) if task_name == TRAIN else self._finish(site, signed, weights, fl_ctx)
        except RuleBroken as error:
            site.store.log.write("refused", rule=error.rule, reason=str(error), **who)
            return _refusal(error)
        except Exception as error:
            # Only the kind of error leaves; its text may quote what must not.
            site.store.log.write("failed", reason=f"{type(error).__name__}: {error}", **who)
            return make_reply(ReturnCode.EXECUTION_EXCEPTION, {REASON: f"the hospital failed: {type(error).__name__}"})

    def _check_asked(self, task_name: str, round_num, total: int) -> None:
        """A server could ask again and again, with models of its own; what was approved is so many rounds, and one end."""
        if self._ended or (task_name == TRAIN and not (type(round_num) is int and self._rounds < round_num <= total)):
            raise RuleBroken("plan", f"{task_name} of round {round_num!r} is asked for after round {self._rounds}"
                             f"{' and the end' if self._ended else ''}; the plan has {total} rounds, each once.")
        if task_name == TRAIN:
            self._rounds = round_num

    def _begin(self, site: Site, signed: SignedPlan, fl_ctx: FLContext) -> None:
        from fl_utils.deployment.hospital import Hospital  # loads TensorFlow

        plan = signed.plan
        site.store.start_run(fl_ctx.get_job_id(), plan.hash, signed.person.name)
        self._charges = _Charges(site.store, plan.config.dataset, fl_ctx.get_job_id()) if plan.noise else None
        self._hospital = Hospital(plan, plan.hospitals.index(site.name), site.folder / DATA / plan.config.dataset, budget=self._charges)

    def _train(self, site: Site, signed: SignedPlan, weights: list[np.ndarray], round_num: int, fl_ctx: FLContext) -> Shareable:
        plan, noise = signed.plan, None
        if plan.noise is not None:
            noise = (plan.noise.noise_multiplier, plan.noise.sampling_rate, plan.noise.steps)
            self._charges.round_num = round_num
        judged = self._hospital.judge(weights)
        began = time.perf_counter()
        update = self._hospital.train(weights, np.array(plan.class_weights, np.float32), round_num, noise)
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: update.num_examples, "work_s": round(time.perf_counter() - began, 3)}
        if "training_loss" in plan.outputs:
            meta[LOSS] = update.loss
        if "score_counts" in plan.outputs:
            meta[JUDGED] = json.dumps(judged)
        number, head = site.store.log.head()
        meta["log_head"] = f"{number}:{head}"
        answer = DXO(DataKind.WEIGHT_DIFF, data={f"w{n}": -part for n, part in enumerate(update.delta)}, meta=meta).to_shareable()
        answer.set_header(AppConstants.CURRENT_ROUND, round_num)
        return answer

    def _finish(self, site: Site, signed: SignedPlan, weights: list[np.ndarray], fl_ctx: FLContext) -> Shareable:
        path = site.folder / MODELS / f"{signed.plan.hash[:12]}.npz"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda file: np.savez(file, *weights))
        judged = self._hospital.judge(weights)
        self._end(fl_ctx, "finished")
        number, head = site.store.log.head()
        answer = Shareable()
        if "score_counts" in signed.plan.outputs:
            answer[JUDGED] = json.dumps(judged)
        answer["log_head"] = f"{number}:{head}"
        return answer

    def _end(self, fl_ctx: FLContext, state: str) -> None:
        self._ended = True
        self.site(fl_ctx).store.end_run(fl_ctx.get_job_id(), state)


class _Charges:
    """A run's way to the data set's budget, as `Hospital` asks for it: every charge is on disk before it trains."""

    def __init__(self, store: Store, dataset: str, run: str):
        self._store, self._dataset, self._run, self.round_num = store, dataset, run, 0

    def charge(self, noise_multiplier: float, terms) -> float:
        return self._store.charge(self._dataset, self._run, self.round_num, noise_multiplier, terms)


class OutputRule(_OfJob, Filter):
    """The last thing before the line: lets through what the owner allows, exactly so large as it must be, and logs its bytes."""

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        site = self.site(fl_ctx)
        try:
            if shareable.get_return_code() not in (None, ReturnCode.OK):
                return make_reply(ReturnCode.EXECUTION_EXCEPTION, {REASON: str(shareable.get_header(REASON, ""))[:500]})
            if is_cards_question(self.content(fl_ctx)):
                return _published_cards(site.store, shareable)
            outputs = self._allowed(site, fl_ctx)
            kept, size, digest = self._checked(shareable, outputs, fl_ctx)
        except RuleBroken as error:
            site.store.log.write("refused", rule=error.rule, reason=str(error), run=fl_ctx.get_job_id())
            return _refusal(error)
        except Exception as error:
            site.store.log.write("refused", rule="outputs", reason=f"{type(error).__name__}: {error}", run=fl_ctx.get_job_id())
            return _refusal(RuleBroken("outputs", f"it cannot be read ({type(error).__name__})."))
        of_round = {"round": number} if isinstance(number := shareable.get_header(AppConstants.CURRENT_ROUND), int) else {}
        site.store.log.write("sent", run=fl_ctx.get_job_id(), plan=self.signed(fl_ctx).plan.hash, bytes=size, sha256=digest, **of_round)
        return kept

    def _allowed(self, site: Site, fl_ctx: FLContext) -> set[str]:
        plan = self.signed(fl_ctx).plan
        found = site.store.dataset(plan.config.dataset)
        return set(plan.outputs) & set(found.outputs if found else ())

    def _checked(self, shareable: Shareable, outputs: set[str], fl_ctx: FLContext) -> tuple[Shareable, int, str]:
        if JUDGED in shareable or "log_head" in shareable:  # the answer to FINISH
            kept = _only(shareable, JUDGED, "log_head")
            _check_meta({key: kept[key] for key in (JUDGED, "log_head") if key in kept}, outputs, len(self.signed(fl_ctx).plan.class_names))
            content = json.dumps({key: kept[key] for key in sorted(kept) if key in (JUDGED, "log_head")}).encode()
            return kept, len(content), hashlib.sha256(content).hexdigest()
        dxo, plan = from_shareable(shareable), self.signed(fl_ctx).plan
        shapes = weight_shapes(plan)
        if dxo.data_kind != DataKind.WEIGHT_DIFF or "model_update" not in outputs:
            raise RuleBroken("outputs", f"a {dxo.data_kind} may not leave; the owner allows {', '.join(sorted(outputs)) or 'nothing'}.")
        if list(dxo.data) != [f"w{n}" for n in range(len(shapes))]:
            raise RuleBroken("outputs", f"the update has the parts {', '.join(map(str, dxo.data))[:200]}; the model has {len(shapes)} weights.")
        for (name, value), shape in zip(dxo.data.items(), shapes, strict=True):
            if type(value) is not np.ndarray or value.shape != shape or value.dtype != np.float32 or not np.isfinite(value).all():
                raise RuleBroken("outputs", f"{name} is no finite float32 array of shape {shape}, which the model's weight is.")
        _check_meta(dxo.meta, outputs, len(plan.class_names))
        digest = hashlib.sha256()
        for value in dxo.data.values():
            digest.update(np.ascontiguousarray(value).tobytes())
        meta = json.dumps(dxo.meta, sort_keys=True, default=str).encode()
        digest.update(meta)
        # What was looked at leaves, and nothing that may lie beside it.
        kept = DXO(DataKind.WEIGHT_DIFF, data=dict(dxo.data), meta=dict(dxo.meta)).to_shareable()
        return kept, sum(value.nbytes for value in dxo.data.values()) + len(meta), digest.hexdigest()


def weight_shapes(plan) -> list[tuple[int, ...]]:
    """Shapes of the weights that travel."""
    return [weight.shape for weight in initial_weights(plan)]


def initial_weights(plan) -> list[np.ndarray]:
    """The weights with which a plan begins, float32; loads TensorFlow."""
    key = plan.hash
    if key not in _INITIAL:
        from fl_utils.learning.configured import local_settings, new_classifier
        from fl_utils.learning.local import travelling_weights

        model = new_classifier(plan.config, plan.image_shape, len(plan.class_names))
        _INITIAL[key] = [weight.numpy() for weight in travelling_weights(model, local_settings(plan.config))]
    return _INITIAL[key]


#: What may stand beside an update: name -> type, and the output that it belongs to, if any.
_META = {
    MetaKey.NUM_STEPS_CURRENT_ROUND: (int, "num_examples"), LOSS: (float, "training_loss"), JUDGED: (str, "score_counts"),
    "work_s": (float, None), "log_head": (str, None),
}
_INITIAL: dict[str, list[np.ndarray]] = {}


def _check_meta(meta: dict, outputs: set[str], num_classes: int) -> None:
    for name, value in meta.items():
        kind, output = _META.get(name, (None, None))
        if kind is None or output not in outputs | {None}:
            raise RuleBroken("outputs", f"{str(name)[:90]} may not leave; the owner allows {', '.join(sorted(outputs))}.")
        if type(value) is not kind:  # an array prints short, however large it is
            raise RuleBroken("outputs", f"{name} is a {type(value).__name__}, expected a {kind.__name__}.")
    if not 0 < meta.get(MetaKey.NUM_STEPS_CURRENT_ROUND, 1) < 10**9:
        raise RuleBroken("outputs", "the number of examples is beyond all reason.")
    if not re.fullmatch(r"(\d{1,12}:[0-9a-f]{64})?", meta.get("log_head", "")):
        raise RuleBroken("outputs", "log_head is not the number and the hash of an entry of the log.")
    if JUDGED in meta:
        _check_judged(meta[JUDGED], num_classes)


def _check_judged(text: str, num_classes: int) -> None:
    from fl_utils.deployment.tally import read_judged

    try:
        read_judged(text, num_classes)
        found = json.loads(text)
    except ValueError as error:
        raise RuleBroken("outputs", f"the scores are not counts of classes: {error}.") from None
    names = {f"{part}_{what}" for part in ("validation", "test") for what in ("confusion", "loss")}
    counts = [number for name in found if name.endswith("_confusion") for number in found[name]]
    # Read again and written again it must be the same text: JSON can say a thing twice, and hide the first.
    if set(found) - names or any(type(number) is not int for number in counts) or json.dumps(found) != text:
        raise RuleBroken("outputs", "the scores hold more than counts of classes.")
    if any(type(found[name]) is not float for name in found if name.endswith("_loss")):
        raise RuleBroken("outputs", "a summed loss among the scores is no number.")


def _published_cards(store: Store, shareable: Shareable) -> Shareable:
    published = [one.card for one in store.datasets()]
    if any(card not in published for card in json.loads(shareable[CARDS])):
        raise RuleBroken("outputs", "something else than a card that the owner has published would leave.")
    return _only(shareable, CARDS)


def _arrays(shareable: Shareable) -> list:
    data = from_shareable(shareable).data
    return [data[f"w{n}"] for n in range(len(data))]


def _asked(config: Path) -> bytes:
    try:
        return (config / ASKED).read_bytes()
    except OSError:
        raise RuleBroken("job", f"there is no {ASKED}: neither a plan nor a question. Submit with `fl-utils consortium train`.") from None


def _refusal(error: RuleBroken) -> Shareable:
    return make_reply(ReturnCode.EXECUTION_EXCEPTION, {REASON: str(error)})


def _only(shareable: Shareable, *names: str) -> Shareable:
    kept = Shareable()
    for name in names:
        if name in shareable:
            kept[name] = shareable[name]
    kept.set_return_code(ReturnCode.OK)
    return kept
