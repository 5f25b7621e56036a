"""What NVFlare builds in the server's process of a job: the rounds of a plan, and the question for cards."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey, make_model_learnable
from nvflare.app_common.app_constant import AppConstants

from fl_utils.deployment.nvflare.jobs import ASKED, CARDS, FINISH, TRAIN
from fl_utils.deployment.nvflare.plan import read_signed
from fl_utils.deployment.nvflare.site_parts import JUDGED, LOSS, REASON, initial_weights
from fl_utils.deployment.server_step import ServerStep, misfit
from fl_utils.deployment.tally import read_judged, tally
from fl_utils.files import write_atomically
from fl_utils.records import METRIC_COLUMNS

OUTCOME = "outcome"


class _Workflow(Controller):
    """What both workflows share: a task to all hospitals, their answers by name, a folder for what comes of it."""

    def start_controller(self, fl_ctx: FLContext) -> None:
        workspace, job = self._engine.get_workspace(), fl_ctx.get_job_id()
        self._asked = (Path(workspace.get_app_config_dir(job)) / ASKED).read_bytes()
        self._authority = (Path(workspace.get_startup_kit_dir()) / "rootCA.pem").read_bytes()
        self._outcome = Path(workspace.get_run_dir(job)) / OUTCOME
        self._outcome.mkdir(exist_ok=True)
        self._answers: dict[str, Shareable] = {}

    def stop_controller(self, fl_ctx: FLContext) -> None:
        pass

    def process_result_of_unknown_task(self, client, task_name, client_task_id, result, fl_ctx) -> None:
        self.log_warning(fl_ctx, f"{client.name} answered too late; not used.")

    def _ask(self, name: str, data: Shareable, hospitals: Sequence[str], timeout_s: int, fl_ctx: FLContext, abort: Signal) -> dict[str, Shareable]:
        self._answers = {}
        task = Task(name, data=data, timeout=timeout_s, result_received_cb=self._take)
        self.broadcast_and_wait(task, fl_ctx, targets=list(hospitals), min_responses=len(hospitals), abort_signal=abort)
        return {hospital: self._answers[hospital] for hospital in hospitals if hospital in self._answers}

    def _take(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        self._answers[client_task.client.name] = client_task.result

    def _keep(self, name: str, content: bytes) -> None:
        write_atomically(self._outcome / name, lambda file: file.write(content))


class CardsRound(_Workflow):
    """Asks each hospital for the cards of its data sets."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        hospitals = sorted(client.name for client in self._engine.get_clients())
        answers = self._ask(CARDS, Shareable(), hospitals, 120, fl_ctx, abort_signal)
        cards, refused = {}, {}
        for name, answer in answers.items():
            if answer.get_return_code() in (None, ReturnCode.OK):
                cards[name] = json.loads(answer[CARDS])
            else:
                refused[name] = str(answer.get_header(REASON, answer.get_return_code()))
        self._keep("cards.json", json.dumps({"cards": cards, "refused": refused}, indent=2).encode())


class PlannedTraining(_Workflow):
    """The rounds of an approved plan: FedAvg over the hospitals that let it in.

    The hospitals' changes are averaged by images as in the other federations of this suite (`ServerStep`). In an encrypted
    plan NVFlare's aggregator adds ciphertexts, and this process sees neither change nor model.

    What comes of it, in the job's folder outcome/: model.npz (the selected round's weights; encrypted plans have none),
    metrics.csv, events.json, outcome.json.
    """

    def start_controller(self, fl_ctx: FLContext) -> None:
        super().start_controller(fl_ctx)
        self._plan = read_signed(self._asked, self._authority).plan
        self._events: list[dict] = []
        self._rows: list[tuple] = []
        self._judged: dict[int, dict] = {}
        self._best: tuple[tuple[float, float], int, list[np.ndarray]] = ((-math.inf, -math.inf), 0, [])
        self._heads: dict[str, str] = {}

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        plan = self._plan
        present = [name for name in plan.hospitals if name in {client.name for client in self._engine.get_clients()}]
        model = make_model_learnable({f"w{n}": weight for n, weight in enumerate(initial_weights(plan))}, {})
        step, done = ServerStep(plan.config, initial_weights(plan)), 0
        for number in range(1, plan.config.total_rounds + 1):
            began = time.perf_counter()
            fl_ctx.set_prop(AppConstants.CURRENT_ROUND, number, private=True, sticky=True)
            fl_ctx.set_prop(AppConstants.GLOBAL_MODEL, model, private=True, sticky=True)
            answers = self._ask(TRAIN, self._shareable(model, number, fl_ctx), present, plan.round_timeout_s, fl_ctx, abort_signal)
            if abort_signal.triggered:
                return
            usable = {name: answer for name, answer in answers.items() if self._usable(name, answer, number)}
            for name in set(present) - set(answers):
                self._event(f"did not answer round {number} within {plan.round_timeout_s} s", name)
            present = [name for name in present if name in usable]  # who refused or fell silent is asked no more
            if number > 1 and self._judged:
                self._score(number - 1, model)
            if len(usable) < plan.min_hospitals:
                reason = f"Round {number} has {len(usable)} updates, {plan.min_hospitals} are needed."
                self._event(reason)
                self._write(done, model)
                self.system_panic(reason, fl_ctx)
                return
            model = self._next(model, step, usable, fl_ctx)
            done = number
            self._rows += [(number, "all", "round", "updates", float(len(usable))),
                           (number, "all", "round", "duration_s", time.perf_counter() - began)]
            self._event(f"Round {number} of {plan.config.total_rounds}: {len(usable)} updates", hospitals=sorted(usable))
            self._write(done, model)
        fl_ctx.set_prop(AppConstants.CURRENT_ROUND, done, private=True, sticky=True)
        fl_ctx.set_prop(AppConstants.GLOBAL_MODEL, model, private=True, sticky=True)
        self._judged = {}
        for name, answer in self._ask(FINISH, self._shareable(model, done, fl_ctx), present, plan.round_timeout_s, fl_ctx, abort_signal).items():
            if answer.get_return_code() in (None, ReturnCode.OK):
                self._take_judged(name, answer.get(JUDGED))
                self._heads[name] = str(answer.get("log_head", ""))
            else:
                self._event(str(answer.get_header(REASON, answer.get_return_code())), name)
        if self._judged:
            self._score(done, model)
        self._event("Finished.")
        self._write(done, model)

    def _shareable(self, model: ModelLearnable, number: int, fl_ctx: FLContext) -> Shareable:
        if self._plan.encrypted:
            data = self._engine.get_component("shareable_generator").learnable_to_shareable(model, fl_ctx)
        else:
            data = DXO(DataKind.WEIGHTS, data=dict(model[ModelLearnableKey.WEIGHTS])).to_shareable()
        data.set_header(AppConstants.CURRENT_ROUND, number)
        data.add_cookie(AppConstants.CONTRIBUTION_ROUND, number)
        return data

    def _usable(self, name: str, answer: Shareable, number: int) -> bool:
        code = answer.get_return_code()
        if code not in (None, ReturnCode.OK):
            self._event(f"no update in round {number}: {answer.get_header(REASON, code)}", name)
            return False
        try:
            dxo = from_shareable(answer)
            examples, loss = dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND), dxo.get_meta_prop(LOSS, 0.0)
            wrong = None if dxo.data_kind == DataKind.WEIGHT_DIFF else f"it sent {dxo.data_kind}"
            if wrong is None and not (isinstance(examples, int) and 0 < examples < 10**9):
                wrong = f"it counts {examples!r} examples"
            if wrong is None and not (isinstance(loss, float) and math.isfinite(loss)):
                wrong = f"its training loss is {loss!r}"
            if wrong is None and not self._plan.encrypted:
                wrong = misfit(_arrays(dxo), initial_weights(self._plan))
        except Exception as error:  # no answer may end the others' training
            wrong = f"its answer cannot be read ({type(error).__name__})"
        if wrong:
            self._event(f"left out of round {number}: {wrong}", name)
            return False
        self._take_judged(name, dxo.get_meta_prop(JUDGED))
        self._heads[name] = str(dxo.get_meta_prop("log_head", ""))
        client = str(self._plan.hospitals.index(name))
        self._rows += [(number, client, "train", "loss", loss), (number, client, "round", "work_s", float(dxo.get_meta_prop("work_s", math.nan)))]
        return True

    def _next(self, model: ModelLearnable, step: ServerStep, usable: dict[str, Shareable], fl_ctx: FLContext) -> ModelLearnable:
        if self._plan.encrypted:
            aggregator = self._engine.get_component("aggregator")
            for name in sorted(usable):
                aggregator.accept(usable[name], fl_ctx)
            mean = aggregator.aggregate(fl_ctx)
            aggregator.reset(fl_ctx)
            return self._engine.get_component("shareable_generator").shareable_to_learnable(mean, fl_ctx)
        updates = [from_shareable(usable[name]) for name in self._plan.hospitals if name in usable]
        deltas = [[-part for part in _arrays(update)] for update in updates]
        change = step.combine(deltas, [update.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND) for update in updates])
        weights = step.apply(_weights(model), change)
        return make_model_learnable({f"w{n}": weight for n, weight in enumerate(weights)}, {})

    def _take_judged(self, name: str, text) -> None:
        if text is None:
            return
        try:
            self._judged[self._plan.hospitals.index(name)] = read_judged(text, len(self._plan.class_names))
        except ValueError as error:
            self._event(str(error), name)

    def _score(self, number: int, model: ModelLearnable) -> None:
        rows, score = tally(number, self._judged)
        self._rows += rows
        if not self._plan.encrypted and score > self._best[0]:
            self._best = (score, number, list(_weights(model)))
        self._judged = {}

    def _event(self, text: str, hospital: str | None = None, **facts) -> None:
        about = {} if hospital is None else {"hospital": hospital}
        self._events.append({"time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())} | about | {"text": text} | facts)

    def _write(self, done: int, model: ModelLearnable) -> None:
        table = pd.DataFrame(self._rows, columns=METRIC_COLUMNS).sort_values("round", kind="stable")
        self._keep("metrics.csv", table.to_csv(index=False, float_format="%.8g").encode())
        self._keep("events.json", json.dumps(self._events, indent=2).encode())
        selected = self._best[1] or done
        if not self._plan.encrypted:
            weights = self._best[2] or _weights(model)
            write_atomically(self._outcome / "model.npz", lambda file: np.savez(file, *weights))
            write_atomically(self._outcome / "last.npz", lambda file: np.savez(file, *_weights(model)))
        facts = {"plan": self._plan.hash, "rounds": done, "selected_round": done if self._plan.encrypted else selected, "log_heads": self._heads}
        self._keep("outcome.json", json.dumps(facts, indent=2).encode())


def _weights(model: ModelLearnable) -> list[np.ndarray]:
    found = model[ModelLearnableKey.WEIGHTS]
    return [found[f"w{n}"] for n in range(len(found))]


def _arrays(dxo: DXO) -> list[np.ndarray]:
    return [dxo.data[f"w{n}"] for n in range(len(dxo.data))]
