"""One client's part of a round, by algorithm: plain TensorFlow, no `tff.*`.

Each update starts at the global weights, computes, and says by how much they should move. Its sign makes the change a
gradient for the server's optimizer: delta = global - local.
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from fl_utils import seeding
from fl_utils.learning.local import LocalTrainer


@dataclasses.dataclass
class ClientResult:
    """What one client computed in a round.

    Attributes:
      delta: global - local weights, one tensor a travelling weight.
      num_examples: float32 scalar, the client's weight in the mean.
      loss: training loss, float32 scalar.
      message: further tensors for the server, averaged like the delta.
      state: tensors that the client keeps for its next round.
    """

    delta: list[tf.Tensor]
    num_examples: tf.Tensor
    loss: tf.Tensor
    message: list[tf.Tensor] = dataclasses.field(default_factory=list)
    state: list[tf.Tensor] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class ClientTask:
    """What one client is given in a round.

    Attributes:
      weights: the global model's, one tensor a travelling weight.
      images, labels, class_weights, seed: as in `LocalTrainer.run`.
      broadcast: further tensors of the server (control variate, momentum).
      state: what the client kept of its last round.
    """

    weights: Sequence
    images: tf.Tensor
    labels: tf.Tensor
    class_weights: tf.Tensor
    seed: tf.Tensor
    broadcast: Sequence = ()
    state: Sequence = ()

    @property
    def data(self) -> tuple:
        return self.images, self.labels, self.class_weights, self.seed

    @property
    def num_examples(self) -> tf.Tensor:
        return tf.cast(tf.shape(self.labels)[0], tf.float32)


def _change(trainer: LocalTrainer, weights: Sequence) -> list[tf.Tensor]:
    return [tf.convert_to_tensor(w) - v for w, v in zip(weights, trainer.weights, strict=True)]


def averaging(trainer: LocalTrainer, task: ClientTask) -> ClientResult:
    """Local SGD. With `LocalSettings.proximal_strength` it is FedProx's.

    Source: McMahan et al. 2017, arXiv:1602.05629, Algorithm 1, ClientUpdate; Li et al. 2020, arXiv:1812.06127.
    """
    trainer.set_weights(task.weights)
    trainer.reset_momentum()
    loss = trainer.run(*task.data)
    return ClientResult(_change(trainer, task.weights), task.num_examples, loss)


def hospital_update(
    trainer: LocalTrainer, weights: Sequence, images, labels, class_weights, *, seed: int, client: str, round_num: int
) -> ClientResult:
    """`averaging` outside of TFF, over the examples in the order in which `federated` gives them to this client.

    Args:
      trainer: used as working memory.
      weights: the common model's, one array a travelling weight.
      images, labels, class_weights: as in `LocalTrainer.run`.
      seed: root seed of the run.
      client, round_num: whose order, and of which round.
    """
    order = tf.constant(seeding.tf_seed(seed, "batch_order", client, round_num))
    return averaging(trainer, ClientTask(weights, images, labels, class_weights, order))


def gradient(trainer: LocalTrainer, task: ClientTask) -> ClientResult:
    """FedSGD: one step, along the gradient over all examples.

    Source: McMahan et al. 2017, arXiv:1602.05629, section 2 (B = infinity, E = 1).
    """
    trainer.set_weights(task.weights)
    gradients, loss = trainer.full_gradient(*task.data)
    delta = [trainer.settings.learning_rate * g for g in gradients]
    return ClientResult(delta, task.num_examples, loss)


def scaffold(trainer: LocalTrainer, task: ClientTask) -> ClientResult:
    """SCAFFOLD: each local gradient is corrected by c - c_i, how far this client's pull differs from all clients'.

    `broadcast` is the server's control variate c, `state` the client's c_i, `message` the change of c_i.

    Source: Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1, option II for c_i. Local SGD without momentum.
    """
    trainer.set_weights(task.weights)
    trainer.reset_momentum()
    loss = trainer.run(*task.data, correction=[c - c_i for c, c_i in zip(task.broadcast, task.state, strict=True)])
    delta = _change(trainer, task.weights)
    steps = tf.cast(trainer.num_steps(tf.shape(task.labels)[0]), tf.float32)
    scale = 1.0 / (steps * trainer.settings.learning_rate)
    message = [scale * d - c for d, c in zip(delta, task.broadcast, strict=True)]
    state = [c_i + change for c_i, change in zip(task.state, message, strict=True)]
    return ClientResult(delta, task.num_examples, loss, message, state)


def mime_lite(trainer: LocalTrainer, task: ClientTask, server_momentum: float) -> ClientResult:
    """Mime-lite: local steps use the server's momentum, which stays fixed; the client sends its full gradient for it.

    A local step is w <- w - lr (g + beta a) with the server's accumulator a = `broadcast`; `message` is the gradient
    over all examples at the global weights.

    Source: Karimireddy et al. 2021, arXiv:2008.03606, Algorithm 1 (MimeLite), with momentum as TFF's SGDM has it.
    """
    trainer.set_weights(task.weights)
    trainer.reset_momentum()
    message, _ = trainer.full_gradient(*task.data)
    loss = trainer.run(*task.data, correction=[server_momentum * a for a in task.broadcast])
    return ClientResult(_change(trainer, task.weights), task.num_examples, loss, message)


def local_norm(trainer: LocalTrainer, task: ClientTask) -> ClientResult:
    """Normalisation layers stay at home (`state`); all else is averaged.

    Source: FedBN, Li et al. 2021, arXiv:2102.07623, Algorithm 1; here for GroupNorm's scales and shifts as well.
    """
    home = norm_positions(trainer)
    own = dict(zip(home, task.state, strict=True))
    start = [own.get(i, w) for i, w in enumerate(task.weights)]
    trainer.set_weights(start)
    trainer.reset_momentum()
    loss = trainer.run(*task.data)
    delta = [tf.zeros_like(d) if i in own else d for i, d in enumerate(_change(trainer, start))]
    return ClientResult(delta, task.num_examples, loss, state=[tf.identity(trainer.weights[i]) for i in home])


def norm_positions(trainer: LocalTrainer) -> list[int]:
    """Which travelling weights belong to normalisation layers (layers with "norm" in their name)."""
    return [i for i, weight in enumerate(trainer.weights) if "norm" in weight.name]
