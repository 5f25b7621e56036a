"""Who is in: hospitals join, are missed, come back, and are told when it is over."""

import time
from collections.abc import Iterable, Sequence

import numpy as np

from fl_utils.deployment.flower import messages
from fl_utils.deployment.flower.board import Board
from fl_utils.deployment.flower.office import POLL_S, Answer, Office
from fl_utils.deployment.flower.settings import Federation

#: What a hospital says of itself when it joins, with the type of each.
_SAID = {"hospital": int, "fingerprint": str, "num_examples": int, "class_counts": list, "num_patients": int, "visit": str}
_FINISH_S = 30.0


class Members:
    """A hospital is present from its introduction until it misses a round; then it must introduce itself again.

    Args:
      office: the server's desk.
      federation: what was agreed on.
      board: shows and logs.
    Attributes:
      introduced: what each hospital said of itself, by number; it stays when the hospital is gone.
      fewest_patients: for whom the noise of the training was planned; a hospital with fewer comes too late.
    """

    def __init__(self, office: Office, federation: Federation, board: Board):
        self._office, self._federation, self._board = office, federation, board
        self.introduced: dict[int, dict] = {}
        self.fewest_patients = 0
        self._present: set[int] = set()
        self._spent: set[int] = set()

    def present(self) -> set[int]:
        """Those who can be asked for an update."""
        return self._present - self._spent

    def recall(self, introduced: dict[int, dict]) -> None:
        """What the hospitals had said before the server was started again; they still have to come."""
        self.introduced = introduced

    def wait_for(self, number: int, *, patience_s: float | None) -> None:
        """Waits until so many are present, at most `patience_s` (None: for ever); says who is waited for."""
        began, said = time.monotonic(), None
        while True:
            self.ask(set(self._office.nodes) - self._present)
            for answer in self._office.collect():
                self.take(answer)
            here, everybody = len(self._present), self._federation.config.num_clients
            if here != said and here < number:
                self._board.show(state="waiting" if said is None else self._board.status["state"])
                self._board.event(f"{here} of {everybody} hospitals joined" + ("; waiting." if here < number else "."))
                said = here
            if here >= number or (patience_s is not None and time.monotonic() - began > patience_s):
                if said is not None or not self.introduced:
                    self._board.event(f"{here} of {everybody} hospitals joined.")
                return
            time.sleep(2 * POLL_S)

    def ask(self, hospitals: Iterable[int]) -> None:
        """Asks those who are connected to introduce themselves, once until they answer."""
        wanted = {hospital for hospital in hospitals if not self._office.asked(hospital, messages.INTRODUCE)}
        wanted &= self._office.online() if wanted else set()
        self._office.post(sorted(wanted), messages.INTRODUCE)

    def take(self, answer: Answer) -> bool:
        """Takes an introduction; True where the hospital's process is another than before. Other answers come too late."""
        hospital = answer.hospital
        if answer.gone or answer.kind == messages.REFUSE:
            return False
        if answer.kind != messages.INTRODUCE:
            self._board.event(f"answered round {answer.round_num} too late; not used.", hospital)
            return False
        wrong = answer.error or self._unfit(hospital, answer.facts)
        if wrong:
            self._present.discard(hospital)
            self._board.hospital(hospital, state="refused")
            text = f"cannot take part: {wrong}"
            if self._board.status["hospitals"][str(hospital)]["last_word"] != text:  # it is asked again each round
                self._board.event(text, hospital)
            if not answer.error:
                self._office.post([hospital], messages.REFUSE, {"reason": wrong})
            return False
        before = self.introduced.get(hospital, {}).get("visit")
        self.introduced[hospital] = answer.facts
        if hospital not in self._present:
            self._present.add(hospital)
            self._board.hospital(hospital, state="joined")
            self._board.event("joined." if before is None else "is back.", hospital)
        elif before != answer.facts["visit"]:
            self._board.event("was started again.", hospital)
        return before is not None and before != answer.facts["visit"]

    def missed(self, hospital: int, text: str) -> None:
        """A hospital did not answer."""
        self._present.discard(hospital)
        self._board.hospital(hospital, state="missing")
        self._board.event(text, hospital)

    def left_out(self, hospital: int, round_num: int, reason: str) -> None:
        """What a hospital answered cannot be used."""
        if "PrivacyBudgetExceeded:" in reason:  # a secure sum puts its stage before it
            self._spent.add(hospital)
            self._board.hospital(hospital, state="budget spent")
        else:
            self._board.hospital(hospital, state="left out")
        self._board.event(f"left out of round {round_num}: {reason}", hospital, round=round_num)

    def finish(self, weights: Sequence[np.ndarray]) -> None:
        """Gives the model to those who are there, and tells them that it is over."""
        waiting = set(self._present)
        self._office.post(sorted(waiting), messages.FINISH, {}, weights)
        end = time.monotonic() + _FINISH_S
        while waiting and time.monotonic() < end:
            for answer in self._office.collect():
                if answer.kind == messages.FINISH:
                    waiting.discard(answer.hospital)
                    self._board.hospital(answer.hospital, state="finished")
            time.sleep(POLL_S)
        for hospital in sorted(waiting):
            self._board.event("did not say that it has the model.", hospital)

    def _unfit(self, hospital: int, facts: dict) -> str | None:
        if {name: type(facts.get(name)) for name in _SAID} != _SAID:
            return f"its introduction has {sorted(facts)}, expected {sorted(_SAID)}"
        if facts["hospital"] != hospital:
            return f"its key is that of hospital {hospital}, and it says that it is hospital {facts['hospital']}"
        if facts["fingerprint"] != self._federation.fingerprint:
            return (
                "its federation.json differs from the server's (fingerprints "
                f"{facts['fingerprint'][:12]} and {self._federation.fingerprint[:12]}); give it the server's copy"
            )
        counts, number, classes = facts["class_counts"], facts["num_examples"], len(self._federation.class_names)
        if any(type(count) is not int or count < 0 for count in counts) or len(counts) != classes or sum(counts) != number:
            return f"its class counts {counts} do not fit {number} images of {classes} classes"
        if not 0 < facts["num_patients"] <= number:
            return f"it has {number} images of {facts['num_patients']} patients"
        if facts["num_patients"] < self.fewest_patients:
            return f"it has {facts['num_patients']} patients, and the noise was planned for {self.fewest_patients} and more"
        known = self.introduced.get(hospital)
        if known and known["num_examples"] != facts["num_examples"]:
            return f"it has {facts['num_examples']} images now and had {known['num_examples']} before; data must not change in a training"
        return None
