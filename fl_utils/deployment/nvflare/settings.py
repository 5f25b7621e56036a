"""The words of a governed consortium: who there is, what may leave a hospital, which rules can refuse, who keeps what.

    consortium/
      authority/                 rootCA.key, rootCA.pem, revocation number: stays with the project admin
      server/                    NVFlare's kit (startup/, local/); revoked.json
      hospital_1/                NVFlare's kit; revoked.json, data/<data set>/; the owner's own: owner.sqlite, audit.jsonl,
                                 models/
      people/researcher@... /    NVFlare's kit of a person: startup/client.key, client.crt, rootCA.pem

Each member is given its own folder, and nothing else.
"""

from pathlib import Path

#: NVFlare's names of the roles, which stand in the certificates -> ours.
ROLES = {"project_admin": "project admin", "org_admin": "data owner", "lead": "researcher", "member": "observer"}
#: What may leave a hospital in a training -> what that is.
OUTPUTS = {
    "model_update": "the change of the model's weights, a round",
    "num_examples": "how many images were trained on",
    "training_loss": "the mean loss over all training images, a round",
    "score_counts": "counts of true by predicted class over the hospital's validation and test images, and their summed loss",
    "patient_scores": "predictions patient by patient",
    "images": "images, or anything of their size",
}
#: What no owner can allow.
NEVER = ("patient_scores", "images")
#: What an access rule can grant to a role on a data set.
ACTIONS = ("see", "train")
#: Rules that a hospital enforces -> what each asks.
RULES = {
    "signature": "the plan is signed by the person whose certificate it carries",
    "identity": "that certificate is of this consortium, and within its time",
    "revoked": "the person has not been revoked, by the consortium or by this hospital's owner",
    "role": "the person's role may do this",
    "dataset": "the hospital has the data set, and its owner lets this role do this with it",
    "job": "what was submitted is the plan's own job, and nothing else",
    "plan": "the owner has approved this very plan: its hash",
    "runs": "the plan has not had all the runs that the owner allows",
    "patients": "at least so many patients stand behind what is sent",
    "outputs": "nothing leaves that the owner does not allow",
    "budget": "the patients' privacy budget is not overspent",
}
REVOKED, DATABASE, AUDIT, DATA, MODELS = "revoked.json", "owner.sqlite", "audit.jsonl", "data", "models"


class ConsortiumError(RuntimeError):
    """The consortium cannot go on, or was set up in a way that cannot be; the text says what to do."""


class RuleBroken(RuntimeError):
    """A hospital refuses, by a rule.

    Attributes:
      rule: its name, of `RULES`.
    """

    def __init__(self, rule: str, text: str):
        super().__init__(f"Rule '{rule}': {text}")
        self.rule = rule


def hospital_names(number: int) -> tuple[str, ...]:
    """Of a consortium of so many hospitals, in order."""
    return tuple(f"hospital_{one}" for one in range(1, number + 1))


def member_folder(consortium: Path, name: str) -> Path:
    """A member's folder: the server, a hospital or, with an @, a person."""
    return Path(consortium) / ("people" if "@" in name else "") / name


def data_folder(consortium: Path, hospital: str, dataset: str) -> Path:
    """Where a hospital keeps the images of a data set."""
    return member_folder(consortium, hospital) / DATA / dataset
