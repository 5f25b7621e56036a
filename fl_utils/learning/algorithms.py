"""The federated algorithms, one registry: what a client computes, what the server does with the mean.

An entry reads as the paper's pseudo-code in two parts: the client's in `client_updates`, the server's optimizer (TFF's)
here. `process.build_process` puts them together. Clients count by their number of examples everywhere, also in
algorithms whose papers take all clients as equal: so all minimise the same loss, that of the pooled data.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import tensorflow as tf
import tensorflow_federated as tff

from fl_utils.learning import client_updates
from fl_utils.learning.client_updates import ClientResult, ClientTask
from fl_utils.learning.local import LocalTrainer


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """The server's step.

    Attributes:
      learning_rate: of the server's optimizer; 1.0 is plain averaging.
      momentum: of FedAvgM and Mime-lite.
      num_examples: of all hospitals together, for SCAFFOLD; None where all take part in every round.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0
    num_examples: int | None = None


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """One federated algorithm.

    Attributes:
      label: a reader's name.
      source: the paper.
      client_update: (trainer, task, server settings) -> ClientResult.
      server_optimizer: server settings -> TFF optimizer that takes the mean change as a gradient.
      next_broadcast: (what was broadcast beside the weights, mean message of the clients, their number of examples,
        server settings) -> what is broadcast next; None where only weights are. It starts at zero.
      client_state: trainer with the initial weights -> what a client holds at first; None where clients keep nothing.
      personal: a hospital's own model differs from the common one.
    """

    label: str
    source: str
    client_update: Callable[[LocalTrainer, ClientTask, ServerSettings], ClientResult]
    server_optimizer: Callable[[ServerSettings], tff.learning.optimizers.Optimizer]
    next_broadcast: Callable[[Sequence, Sequence, tf.Tensor, ServerSettings], Sequence] | None = None
    client_state: Callable[[LocalTrainer], Sequence] | None = None
    personal: bool = False


def _sgd(server: ServerSettings):
    return tff.learning.optimizers.build_sgdm(server.learning_rate)


def _sgd_with_momentum(server: ServerSettings):
    return tff.learning.optimizers.build_sgdm(server.learning_rate, server.momentum)


# Reddi et al. set beta_1 = 0.9, beta_2 = 0.99 and the adaptivity tau = 0.001. TFF's optimizers also correct the bias
# of the first rounds, as Kingma and Ba do and Reddi et al. do not, and Adagrad's adds epsilon under the root.
def _adam(server: ServerSettings):
    return tff.learning.optimizers.build_adam(server.learning_rate, beta_1=0.9, beta_2=0.99, epsilon=1e-3)


def _yogi(server: ServerSettings):
    return tff.learning.optimizers.build_yogi(
        server.learning_rate, beta_1=0.9, beta_2=0.99, epsilon=1e-3, initial_preconditioner_value=1e-6
    )


def _adagrad(server: ServerSettings):
    return tff.learning.optimizers.build_adagrad(server.learning_rate, initial_preconditioner_value=1e-6, epsilon=1e-3)


def _averaging(trainer: LocalTrainer, task: ClientTask, server: ServerSettings) -> ClientResult:
    return client_updates.averaging(trainer, task)


def _mean_of_control_variates(control, mean_change, num_examples, server: ServerSettings):
    """c <- c + (n_cohort / n) mean change: c stays the mean of all c_i, weighted by examples."""
    share = num_examples / float(server.num_examples) if server.num_examples else 1.0
    return [c + share * change for c, change in zip(control, mean_change, strict=True)]


def _momentum(accumulator, mean_gradient, num_examples, server: ServerSettings):
    return [server.momentum * a + g for a, g in zip(accumulator, mean_gradient, strict=True)]


FEDAVG = Algorithm("FedAvg", "McMahan et al. 2017, arXiv:1602.05629", _averaging, _sgd)
ADAPTIVE = "Reddi et al. 2021, arXiv:2003.00295, Algorithm 2"
ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        "fedsgd": Algorithm(
            "FedSGD", "McMahan et al. 2017, arXiv:1602.05629",
            lambda trainer, task, server: client_updates.gradient(trainer, task), _sgd,
        ),
        "fedavg": FEDAVG,
        # The proximal term is in the clients' settings.
        "fedprox": Algorithm("FedProx", "Li et al. 2020, arXiv:1812.06127", _averaging, _sgd),
        "fedavgm": Algorithm("FedAvgM", "Hsu et al. 2019, arXiv:1909.06335", _averaging, _sgd_with_momentum),
        "fedadam": Algorithm("FedAdam", ADAPTIVE, _averaging, _adam),
        "fedyogi": Algorithm("FedYogi", ADAPTIVE, _averaging, _yogi),
        "fedadagrad": Algorithm("FedAdagrad", ADAPTIVE, _averaging, _adagrad),
        "mimelite": Algorithm(
            "Mime-lite", "Karimireddy et al. 2021, arXiv:2008.03606",
            lambda trainer, task, server: client_updates.mime_lite(trainer, task, server.momentum), _sgd,
            next_broadcast=_momentum,
        ),
        "scaffold": Algorithm(
            "SCAFFOLD", "Karimireddy et al. 2020, arXiv:1910.06378",
            lambda trainer, task, server: client_updates.scaffold(trainer, task), _sgd,
            next_broadcast=_mean_of_control_variates,
            client_state=lambda trainer: [tf.zeros(variable.shape) for variable in trainer.variables],
        ),
        # FedAvg first; the fine-tuning at each hospital follows the last round.
        "finetuned": Algorithm("FedAvg, fine-tuned", "Yu et al. 2020, arXiv:2002.04758", _averaging, _sgd, personal=True),
        "local_norm": Algorithm(
            "Norm layers at home", "FedBN: Li et al. 2021, arXiv:2102.07623",
            lambda trainer, task, server: client_updates.local_norm(trainer, task), _sgd,
            client_state=lambda trainer: [trainer.weights[i] for i in client_updates.norm_positions(trainer)],
            personal=True,
        ),
    }
)


def algorithm_named(name: str) -> Algorithm:
    """A registered algorithm.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"Algorithm {name!r} is not known; expected one of {', '.join(ALGORITHMS)}.")
    return ALGORITHMS[name]
