"""A hospital's process: joins the federation, answers the server until the training is over, keeps the model."""

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.common import Context, Message, RecordDict
from flwr.common.constant import ErrorCode

from fl_utils.deployment.flower import credentials, messages, secure
from fl_utils.deployment.flower.journal import Journal
from fl_utils.deployment.flower.key_files import read_file
from fl_utils.deployment.flower.link import HEARTBEAT_S, LineLost, Link, Occupied, Parcel, Refused, answer_messages, pack
from fl_utils.deployment.flower.settings import Federation, FederationError, hospital_folder, read_federation
from fl_utils.files import write_atomically
from fl_utils.trust.budget import PrivacyBudget

#: A server that starts tells Flower of the hospitals' keys a moment after it begins to listen.
UNKNOWN_FOR_S = 10.0
#: A process that was killed is taken to be there for another two heartbeats.
OCCUPIED_FOR_S = 4 * HEARTBEAT_S
MODEL, BUDGET = "model.npz", "privacy_budget.json"


def run_client(
    folder: Path, number: int, *, data: Path | None = None, keep_sent: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Takes part in a federation as one hospital; returns when the server says that the training is over.

    A server that is not there yet, or is gone for a while, is waited for.

    Args:
      folder: of the federation, or the hospital's own folder where it was given that alone.
      number: which hospital this is, from 0.
      data: folder of the hospital's images; default `data` in the hospital's folder.
      keep_sent: folder for a copy of every byte that leaves.
      say: is handed a line for the user now and then.
    Raises:
      FederationError: the server refuses this hospital, or is about another federation.
      CredentialError: key or certificate cannot be used, or the server is not the federation's.
      DataError: the images cannot be used.
      ValueError: the privacy budget's file is not one.
    """
    own = hospital_folder(folder, number)
    federation = read_federation(own)
    if not 0 <= number < federation.config.num_clients:
        raise FederationError(f"There is no hospital {number}: they are numbered 0 to {federation.config.num_clients - 1}.")
    keys, authority = credentials.load_hospital_key(own), read_file(own / "ca.crt")
    with contextlib.suppress(ConnectionError):  # nothing is loaded for a server that is not the federation's
        _check(federation, authority)
    from fl_utils.deployment.hospital import Hospital  # loads TensorFlow

    hospital = Hospital(federation, number, data or own / "data", budget=_budget(federation, own))
    say(f"Hospital {number}: {hospital.introduction()['num_examples']} training images. Server: {federation.address}")
    journal = Journal(own, keep_sent)
    desk = _Desk(federation, hospital, own, journal, say)
    since: dict[type[Exception], float] = {}  # when the server began to turn this hospital away, by how
    said = False
    while not desk.over.is_set():
        link = None
        try:
            _check(federation, authority)
            link = Link(federation.address, authority if federation.transport == "tls" else None, keys, journal)
            link.open()
            since.clear()
            said = False
            say("Joined.")
            answer_messages(link, desk.answer, desk.over)
        except Refused as error:
            if time.monotonic() - since.setdefault(Refused, time.monotonic()) > UNKNOWN_FOR_S:
                raise FederationError(
                    f"The server at {federation.address} refuses hospital {number}: it does not know this key ({error}). Send the "
                    "server's people your key.pub, or take the folder that they made for you."
                ) from None
        except Occupied:
            if Occupied not in since:
                say(f"The server takes an earlier process of hospital {number} to be there still; waiting until it does not.")
            if time.monotonic() - since.setdefault(Occupied, time.monotonic()) > OCCUPIED_FOR_S:
                raise FederationError(
                    f"Another process takes part as hospital {number}, with the same key. End that one; or, if it is not yours, tell the "
                    "server's people that this key is in other hands."
                ) from None
        except (LineLost, ConnectionError) as error:
            since.clear()  # the server is begun anew, perhaps
            if not said:
                say(f"The server at {federation.address} is not there ({error}); waiting for it.")
            said = True
        finally:
            if link is not None:
                link.close()
        desk.over.wait(0.5)
    if desk.refused:
        raise FederationError(f"The server at {federation.address} does not take hospital {number} in: {desk.refused}.")
    say(f"The training is over; the model is in {own.name}/{MODEL}.")


def _budget(federation: Federation, own: Path) -> PrivacyBudget | None:
    path, config = own / BUDGET, federation.config
    if not config.privacy_unit:
        return None
    return PrivacyBudget.load(path) if path.exists() else PrivacyBudget(unit="patient", epsilon=config.epsilon, delta=config.delta, path=path)


def _check(federation: Federation, authority: bytes) -> None:
    if federation.transport == "tls":
        credentials.check_server(federation.address, authority)


class _Desk:
    """Answers one message after another; `over` is set once the server has said that there will be no more."""

    def __init__(self, federation: Federation, hospital, folder: Path, journal: Journal, say: Callable[[str], None]):
        self._introduction = hospital.introduction() | {"fingerprint": federation.fingerprint}
        self._hospital, self._folder, self._journal, self._say = hospital, folder, journal, say
        self._visit = secrets.token_hex(8)
        self._context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
        self.over, self.refused = threading.Event(), ""
        secured = federation.secure
        app = ClientApp(mods=[secure.agreed_mod(secured.threshold)] if secured else [])
        app.query(messages.INTRODUCE)(self._introduce)
        app.query(messages.FINISH)(self._finish)
        app.query(messages.REFUSE)(self._refused)
        app.evaluate()(self._judge)
        app.train()(self._train_secured if secured else self._train)
        self._app = app

    def answer(self, message: Message) -> Parcel:
        """The answer to a message; an error is an answer too. Written to the log before it is handed out."""
        kind = message.metadata.message_type
        try:
            reply = self._app(message, self._context)
            parcel = pack(reply)
            if kind == "train":
                self._journal.write(
                    what=kind, round=message.metadata.group_id, message_sha256=parcel.message_id,
                    content_bytes=parcel.content_bytes, sent_bytes_before=self._journal.sent_bytes,
                )
            return parcel
        except Exception as error:
            # Errors of this package are written to be read; others might quote what must not leave.
            own = type(error).__module__.startswith("fl_utils.") or isinstance(error, ValueError)
            reason = f"{type(error).__name__}: {error}" if own else type(error).__name__
            self._say(f"Refused a message of the server ({kind}): {type(error).__name__}: {error}")
            return pack(Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message))

    def _introduce(self, message: Message, context: Context) -> Message:
        return Message(messages.content_of(self._introduction | {"visit": self._visit}), reply_to=message)

    def _train(self, message: Message, context: Context) -> Message:
        facts, arrays = self._worked(messages.facts_of(message), messages.arrays_of(message))
        return Message(messages.content_of(facts, arrays), reply_to=message)

    def _train_secured(self, message: Message, context: Context) -> Message:
        weights, plan = secure.fit_request(message)
        facts, arrays = self._worked(plan, weights)
        return secure.fit_reply(message, arrays, facts.pop("num_examples"), facts)

    def _worked(self, plan: dict, weights: list[np.ndarray]) -> tuple[dict, list[np.ndarray]]:
        began = time.perf_counter()
        judged = self._hospital.judge(weights)
        noise = (plan["noise_multiplier"], plan["sampling_rate"], plan["steps"]) if "noise_multiplier" in plan else None
        class_weights = np.array(json.loads(plan["class_weights"]), np.float32)
        update = self._hospital.train(weights, class_weights, plan["round"], noise)
        work_s = time.perf_counter() - began
        self._say(f"Round {plan['round']}: trained in {work_s:.1f} s, loss {update.loss:.3f}")
        facts = {
            "hospital": self._hospital.number, "round": plan["round"], "num_examples": update.num_examples, "loss": update.loss,
            "work_s": work_s, "judged": json.dumps(judged),
        }
        return facts, update.delta

    def _judge(self, message: Message, context: Context) -> Message:
        judged = self._hospital.judge(messages.arrays_of(message))
        facts = {"hospital": self._hospital.number, "judged": json.dumps(judged)}
        return Message(messages.content_of(facts), reply_to=message)

    def _finish(self, message: Message, context: Context) -> Message:
        weights = messages.arrays_of(message)
        write_atomically(self._folder / MODEL, lambda file: np.savez(file, *weights))
        self.over.set()  # the answer is still sent
        return Message(messages.content_of({"hospital": self._hospital.number}), reply_to=message)

    def _refused(self, message: Message, context: Context) -> Message:
        self.refused = str(messages.facts_of(message).get("reason", ""))
        self.over.set()
        return Message(messages.content_of({"hospital": self._hospital.number}), reply_to=message)
