"""FedAvg with bad hospitals and a server that may expect them.

The hospitals' training runs outside of TFF, because an attacker decides what it sends after it has trained, and
colluding ones after they have seen what others send. What they send is combined by TFF's aggregation process, the very
factories that `learning.process` takes. Without an attack and with the mean, the weights agree with those of
`federated.FederatedLearner` up to rounding.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from fl_utils import seeding
from fl_utils.config import MIN_MARKED_PX, ExperimentConfig
from fl_utils.data.markers import mark
from fl_utils.data.partition import PartitionError
from fl_utils.data.types import ImageDataset
from fl_utils.experiments.hospitals import Hospitals
from fl_utils.learning import aggregators, engine
from fl_utils.learning.client_updates import hospital_update
from fl_utils.learning.federated import leaves_of, with_leaves
from fl_utils.learning.local import LocalSettings, LocalTrainer
from fl_utils.learning.rounds import Judge, View
from fl_utils.models.classifiers import build_model
from fl_utils.trust.detection import look
from fl_utils.trust.poisoning import poison_data, poison_updates

Data = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Root:
    """What a server with FLTrust trains on itself.

    Attributes:
      images, labels: clean examples.
      epochs: passes a round, so that it makes about as many steps as a hospital.
    """

    images: np.ndarray
    labels: np.ndarray
    epochs: int


def root_of(config: ExperimentConfig, dataset: ImageDataset, hospitals: Hospitals) -> Root:
    """The server's clean examples, drawn from the validation part, which nothing else uses here.

    Raises:
      PartitionError: the validation part holds fewer.
    """
    validation, wanted = hospitals.split.validation, config.root_examples
    if wanted > len(validation):
        raise PartitionError(f"root_examples is {wanted}; {dataset.name} has {len(validation)} validation images to draw from.")
    index = np.sort(seeding.generator(config.seed, "root").permutation(validation)[:wanted])
    passed = np.mean([len(own) for own in hospitals.train]) * config.client_epochs_per_round
    return Root(dataset.images[index], dataset.labels[index], max(1, round(passed / wanted)))


def attackers_of(config: ExperimentConfig, round_num: int) -> list[int]:
    """The bad hospitals of a round; the same for all aggregators, so that they can be compared in pairs."""
    if not config.attack:
        return []
    changing = (round_num,) if config.attack_schedule == "changing" else ()
    rng = seeding.generator(config.seed, "attackers", *changing)
    return sorted(rng.permutation(config.num_clients)[: config.num_attackers].tolist())


def factory_of(aggregator: str, *, num_clients: int, assumed_attackers: int | None = None) -> aggregators.Factory:
    """The factory of a key of `config.AGGREGATOR_LABELS`. Norms adapt by TFF's rules; Multi-Krum takes n - f - 2 updates."""
    number, assumed = num_clients, assumed_attackers
    factories = {
        "mean": aggregators.mean,
        "norm_clipping": aggregators.norm_clipping,
        "norm_zeroing": aggregators.norm_zeroing,
        "coordinate_median": aggregators.coordinate_median,
        "trimmed_mean": lambda: aggregators.trimmed_mean(assumed / number),
        "krum": lambda: aggregators.krum(assumed),
        "multi_krum": lambda: aggregators.multi_krum(assumed, max(1, number - assumed - 2)),
        "geometric_median": aggregators.geometric_median,
        "fltrust": aggregators.fltrust,
    }
    return factories[aggregator]()


class RobustLearner:
    """See the module and `rounds.Learner`.

    Args:
      trainer: of the hospitals; used as working memory.
      weights: the model's at the start.
      data: (images, labels) of each hospital, as it honestly has them.
      class_weights: float32 [K]; the class counts are those of the honest data.
      config: of the run.
      root: for FLTrust, with its trainer; else None.
      last_layer: positions of the classifier's last layer in the flattened weights.
    Attributes:
      observed: rows (client, split "update", metric, value) of the last round: left_out for a hospital whose update was
        not finite, and with the mean what a server that looks at the updates sees (`trust.detection.look`).
    """

    def __init__(
        self, trainer: LocalTrainer, weights: Sequence[np.ndarray], data: Sequence[Data], class_weights: np.ndarray,
        config: ExperimentConfig, *, root: tuple[LocalTrainer, Root] | None = None, last_layer: slice = slice(None),
    ):
        engine.ensure_started()
        self._trainer, self._config, self._root, self._last_layer = trainer, config, root, last_layer
        self._weights = [np.asarray(weight) for weight in weights]
        self._shapes = [weight.shape for weight in self._weights]
        self._class_weights = tf.constant(class_weights)
        self._honest = [_tensors(images, labels) for images, labels in data]
        ever_bad = {client for number in range(1, config.total_rounds + 1) for client in attackers_of(config, number)}
        self._bad = {client: _tensors(*self._poisoned(client, *data[client])) for client in ever_bad}
        value_type = tff.to_type([tff.TensorType(np.float32, shape) for shape in self._shapes])
        factory = factory_of(
            config.aggregator, num_clients=config.num_clients, assumed_attackers=config.assumed_attackers
        )
        self._process = factory.create(value_type, tff.TensorType(np.float32))
        self._state = self._process.initialize()
        self.observed: list[tuple[str, str, str, float]] = []

    def _poisoned(self, client: int, images: np.ndarray, labels: np.ndarray) -> Data:
        config = self._config
        return poison_data(
            images, labels, config.attack, num_classes=len(self._class_weights), source=config.attack_source,
            target=config.attack_target, rng=seeding.generator(config.seed, "poison", client),
        )

    def do_round(self, round_num: int) -> dict[str, float]:
        """See `rounds.Learner`. A hospital whose update is not finite is left out and named; it has no loss."""
        config, bad = self._config, attackers_of(self._config, round_num)
        results = [
            hospital_update(
                self._trainer, self._weights, *(self._bad if client in bad else self._honest)[client],
                self._class_weights, seed=config.seed, client=str(client), round_num=round_num,
            )
            for client in range(config.num_clients)
        ]
        sent = np.stack([_flat(result.delta) for result in results])
        if bad:
            sent = poison_updates(sent, bad, config.attack, strength=config.attack_strength)
        if self._root:
            self._state = aggregators.trusting(self._state, self._server_update(round_num))
        examples = [float(result.num_examples) for result in results]
        output = self._process.next(self._state, [self._unflat(row) for row in sent], examples)
        self._state = output.state
        losses = {str(client): float(result.loss) for client, result in enumerate(results)}
        failed = [str(client) for client in aggregators.left_out(self._state)]
        self._observe(sent, bad, failed)
        if len(failed) == len(losses):
            return dict.fromkeys(losses, math.nan)  # the loop stops and names them
        self._weights = [weight - np.asarray(part) for weight, part in zip(self._weights, output.result, strict=True)]
        return {client: loss for client, loss in losses.items() if client not in failed}

    def _server_update(self, round_num: int) -> np.ndarray:
        trainer, root = self._root
        result = hospital_update(
            trainer, self._weights, *_tensors(root.images, root.labels), self._class_weights, seed=self._config.seed,
            client="server", round_num=round_num,
        )
        return _flat(result.delta)

    def _observe(self, sent: np.ndarray, bad: Sequence[int], failed: Sequence[str]) -> None:
        self.observed = [(client, "update", "left_out", 1.0) for client in failed]
        if self._config.aggregator != "mean":  # The robust rules act by themselves; who only looks, averages.
            return
        seen = look(sent, self._last_layer) | {"attacker": np.isin(np.arange(len(sent)), bad)}
        for metric, values in seen.items():
            self.observed += [
                (str(client), "update", metric, float(value)) for client, value in enumerate(values)
                if str(client) not in failed
            ]

    def _unflat(self, row: np.ndarray) -> list[np.ndarray]:
        ends = np.cumsum([int(np.prod(shape)) for shape in self._shapes])
        return [part.reshape(shape) for part, shape in zip(np.split(row, ends[:-1]), self._shapes, strict=True)]

    def weights(self) -> list[np.ndarray]:
        return list(self._weights)

    def state(self) -> list[np.ndarray]:
        return [*self._weights, *leaves_of(self._state)]

    def restore(self, state: Sequence[np.ndarray]) -> None:
        self._weights = list(state[: len(self._weights)])
        self._state = with_leaves(self._state, state[len(self._weights) :])


@functools.lru_cache(maxsize=4)
def shared_trainer(model: str, image_shape: tuple[int, int, int], num_classes: int, settings: LocalSettings) -> LocalTrainer:
    """A trainer that the runs of a process share: it is traced once, and holds nothing that outlives an update."""
    return LocalTrainer(build_model(model, image_shape, num_classes), settings)


class AttackJudge(Judge):
    """Judges a federation under attack also on the test images of each class, and on marked ones.

    Split "true_k" holds the test images of class k; its accuracy is the recall. Split "marked_k" holds all test images
    that are not of class k, marked and labelled k; its accuracy is the success of a backdoor to k. Without a backdoor it is
    asked for all k: what marked images are called by nobody's intent.

    Args:
      model, views: as in `rounds.Judge`.
      dataset: its images; marks need 28 pixels, below there is no such split.
      test: the test set's index.
      target: k, or None for all.
    """

    def __init__(self, model: keras.Model, dataset: ImageDataset, views: Sequence[View], test: np.ndarray, target: int | None):
        images, labels, views = [dataset.images], [dataset.labels], list(views)
        own = {k: test[dataset.labels[test] == k] for k in range(dataset.num_classes)}
        views += [View("all", f"true_{k}", index) for k, index in own.items() if len(index)]
        end = len(dataset)
        big_enough = dataset.images.shape[1] >= MIN_MARKED_PX
        for k in (range(dataset.num_classes) if target is None else [target]) if big_enough else ():
            others = np.setdiff1d(test, own[k])
            images.append(mark(dataset.images[others]))
            labels.append(np.full(len(others), k, dataset.labels.dtype))
            views.append(View("all", f"marked_{k}", np.arange(end, end + len(others))))
            end += len(others)
        super().__init__(model, np.concatenate(images), np.concatenate(labels), views)


def last_layer_of(model: keras.Model) -> slice:
    """Where the kernel and bias of a classifier's last layer stand in its flattened, joined weights: at their end."""
    return slice(-sum(int(np.prod(variable.shape)) for variable in model.layers[-1].trainable_variables), None)


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.constant(images), tf.constant(labels, tf.int32)


def _flat(parts: Sequence[tf.Tensor]) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in parts])
