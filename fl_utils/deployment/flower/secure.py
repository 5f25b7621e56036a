"""Secure sums over Flower's SecAgg+: the server learns the hospitals' weighted mean, and no single update.

    hospital:  app = ClientApp(mods=[secure_mod]), or secure_mod(message, context, train) for each TRAIN message,
               where train(message, context) uses `fit_request` and answers with `fit_reply`
    server:    result = secure_round(grid, weights=..., node_ids=..., ...); result.mean is None where it failed

Each hospital hides its quantised change under one private mask and one mask for each pair of hospitals; those of pairs
cancel in the sum, and what else must come off is rebuilt from Shamir shares that the survivors hold. The protocol is
Flower's. Its masks are not: Flower 1.23 folds each key to 32 bits and seeds NumPy's Mersenne Twister with them, which
can be searched through. Here they are ChaCha20 streams under the whole key (`mask_integers`), on both sides.

What it protects against: a server that keeps to the protocol and is curious. What it does not do:
- Metrics and `num_examples` travel in the clear; nothing but the arrays is hidden.
- The server passes the public keys on, and a hospital cannot tell whose they are. One that lies can invent hospitals, or
  put its own keys in the place of others', and see through the masks. Flower's node authentication tells the server who
  the hospitals are, never a hospital who the others are.
- A lying server may tell one hospital that another is there, and the next that it is gone, and so ask for both halves of
  what hides its update. Hospitals refuse what each can see of this: a list that contradicts itself, a second list. As a
  share of each half goes to no more than all, a threshold above half of the hospitals closes the rest; any other is
  refused, at both ends.
- Sums over two groups that differ by one hospital differ by its update: never let the same update be summed twice.
  With two survivors each learns the other's from a mean that it is told.
- A hospital that sends nonsense is not noticed: its update is hidden.
- The mean is not exact. Changes are clipped to +-`clipping_range`, weighted, and rounded up or down by chance (NumPy's
  global generator) to multiples of 2 * clipping_range / quantization_range. With n survivors and r the sum of their
  num_examples / max_examples, a number is off by at most 1.5 * n / r such steps: n / r by rounding the changes, n / 2r
  by rounding the ratios. So max_examples should be the largest hospital's count, not a round number far above it.

The threshold, as measured: every hospital is a neighbour of every other and of itself, so that Flower's counts, which
include the hospital itself, are counts of survivors. Those who answer must be at least `threshold` in each of the four
stages, the unmasking included. Who leaves before his masked vector came is not in the mean; who leaves after it is.

Sources: Bonawitz et al. 2017, doi:10.1145/3133956.3133982; Bell et al. 2020, doi:10.1145/3372297.3417885; Flower 1.23.
"""

import dataclasses
import hashlib
import importlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from flwr.common import (
    Code, ConfigRecord, Context, FitIns, FitRes, Message, MessageType, RecordDict, Status, bytes_to_ndarray,
    ndarrays_to_parameters, parameters_to_ndarrays,
)
from flwr.common import recorddict_compat as compat
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, RECORD_KEY_STATE, Key, Stage
from flwr.server import Grid, LegacyContext
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey

# By name: attributes of these packages are functions and classes that are called like the modules.
_USERS_OF_MASKS = [importlib.import_module(f"flwr.{name}") for name in (
    "common.secure_aggregation.secaggplus_utils", "client.mod.secure_aggregation.secaggplus_mod",
    "server.workflow.secure_aggregation.secaggplus_workflow",
)]  # fmt: skip
_, _HOSPITAL_SIDE, _SERVER_SIDE = _USERS_OF_MASKS
_LABEL = b"fl_utils secure aggregation mask, version 1\0"
#: Masks and sums are integers modulo this.
MODULUS = 2**32


@dataclasses.dataclass(frozen=True)
class SecureSettings:
    """How secure rounds are run.

    Attributes:
      threshold: hospitals that must answer in every stage, >= 2 and more than half of those asked.
      clipping_range: each number of a change is clipped to plus or minus this.
      quantization_range: steps from -clipping_range to clipping_range; times the hospitals, below 2^32.
      timeout_s: time limit of each of the four stages; training happens in the third.
    """

    threshold: int
    clipping_range: float = 3.0
    quantization_range: int = 2**22
    timeout_s: float = 60.0

    def __post_init__(self):
        if self.threshold < 2:
            raise ValueError(f"threshold is {self.threshold}; expected at least 2: a sum over one hospital hides nothing.")
        if not (0 < self.clipping_range < math.inf and 0 < self.timeout_s < math.inf and self.quantization_range >= 2):
            raise ValueError(f"{self}: expected a clipping_range and a timeout_s above 0 and a quantization_range from 2.")


@dataclasses.dataclass(frozen=True)
class SecureResult:
    """What a secure round gave.

    Attributes:
      mean: float64 arrays in the shapes of the weights; None where the round failed and nothing was published.
      reason: a sentence: what was summed, or why not.
      answered: Flower's node id -> what that hospital sent in the clear: `num_examples` and its metrics. Those whose
        masked vector came.
      failures: (node id, or None where it is no hospital's; what happened).
      stage: the last one that was begun: "setup", "share_keys", "collect_masked_vectors" or "unmask".
    """

    mean: list[np.ndarray] | None
    reason: str
    answered: dict[int, dict]
    failures: list[tuple[int | None, str]]
    stage: str


def mask_integers(seed: bytes, num_range: int, dimensions_list: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Uniform integers from a secret: the ChaCha20 stream whose key is SHA-256 of a label and the seed.

    Takes the place of Flower's `pseudo_rand_gen`, hence the names. The nonce is zero: a seed is for one use.

    Args:
      seed: of any length; all of it counts.
      num_range: a power of two, 1 to 2^32; a 32-bit word of the stream is cut to its low bits.
      dimensions_list: shapes, () among them; the stream fills them in this order.
    Returns:
      int64 arrays, values 0 .. num_range - 1.
    Raises:
      ValueError: num_range is another number.
    """
    if not 1 <= num_range <= MODULUS or num_range & (num_range - 1):
        raise ValueError(f"num_range is {num_range}; expected a power of two up to 2^32, others would not be uniform.")
    size = sum(math.prod(shape) for shape in dimensions_list)
    cipher = Cipher(ChaCha20(hashlib.sha256(_LABEL + bytes(seed)).digest(), bytes(16)), mode=None)
    words = np.frombuffer(cipher.encryptor().update(bytes(4 * size)), dtype="<u4")
    return _cut((words & np.uint32(num_range - 1)).astype(np.int64), dimensions_list)


def use_strong_masks() -> None:
    """From now on Flower's SecAgg+ in this process takes its masks from `mask_integers`; may be called again."""
    for module in _USERS_OF_MASKS:
        module.pseudo_rand_gen = mask_integers


def fit_request(message: Message) -> tuple[list[np.ndarray], dict]:
    """The weights and the config that `secure_round` was given, at the hospital."""
    request = compat.recorddict_to_fitins(message.content, keep_input=True)
    return parameters_to_ndarrays(request.parameters), dict(request.config)


def fit_reply(message: Message, arrays: Sequence[np.ndarray], num_examples: int, metrics: Mapping) -> Message:
    """A hospital's answer to a request to train; `secure_mod` masks it.

    Args:
      message: the request.
      arrays: the model's change, in the shapes of the weights.
      num_examples: the weight in the mean, 1 .. max_examples of the round. Travels in the clear.
      metrics: name -> int, float, str, bytes or bool. Travel in the clear.
    """
    parameters = ndarrays_to_parameters([np.asarray(array) for array in arrays])
    answer = FitRes(Status(Code.OK, ""), parameters, num_examples, dict(metrics))
    return Message(compat.fitres_to_recorddict(answer, keep_input=True), reply_to=message)


def secure_mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """A hospital's side of secure rounds; a Flower mod.

    Args:
      message: of any type; those for training take part in a secure round or are refused, others go to `call_next`.
      context: one for all messages of a run; keeps the keys between the stages.
      call_next: trains; called in the third of the four stages only.
    Raises:
      ValueError: training is asked for in the clear; the terms, the lists of survivors or the update are not as they
        must be; or what Flower refuses. Nothing secret has left then.
    """
    category = message.metadata.message_type.split(".")[0]
    if category != MessageType.TRAIN:
        return call_next(message, context)
    request = message.content.config_records.get(RECORD_KEY_CONFIGS)
    if request is None or message.metadata.message_type != category:  # "train.default" runs the same function
        raise ValueError(f"A request of type {message.metadata.message_type!r} asks for training outside of a secure round. "
                         "This hospital sends no update in the clear; the server is to use secure_round.")
    state = context.state.config_records.get(RECORD_KEY_STATE) or {}
    if request.get(Key.STAGE) == Stage.SETUP:
        _check_majority(request[Key.THRESHOLD], request[Key.SHARE_NUMBER])
    elif request.get(Key.STAGE) == Stage.UNMASK:
        _check_survivors(request, state, message.metadata.dst_node_id)
    use_strong_masks()
    return _HOSPITAL_SIDE.secaggplus_mod(message, context, lambda m, c: _flattened(call_next(m, c), state))


def agreed_mod(threshold: int) -> Callable:
    """`secure_mod` of a hospital that knows which threshold was agreed on, and refuses a round with another."""

    def mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        request = message.content.config_records.get(RECORD_KEY_CONFIGS) or {}
        if request.get(Key.STAGE) == Stage.SETUP and request.get(Key.THRESHOLD) != threshold:
            raise ValueError(f"The server asks for a secure sum with threshold {request.get(Key.THRESHOLD)}; {threshold} was agreed on.")
        return secure_mod(message, context, call_next)

    return mod


def secure_round(grid: Grid, *, weights: Sequence[np.ndarray], node_ids: Sequence[int], round_num: int, config: Mapping,
                 settings: SecureSettings, max_examples: int) -> SecureResult:
    """One round: hospitals train from the weights, the server gets the mean of their changes weighted by num_examples.

    Args:
      grid: only its `send_and_receive` is used.
      weights: of the model; sent to each hospital.
      node_ids: Flower's ids of the hospitals to ask, all different.
      round_num: names the messages' group.
      config: name -> scalar; sent along.
      max_examples: no hospital has more; one that has is refused by its own side.
    Returns:
      The mean, or why there is none; hospitals that fail, time out or send something else are no exception.
    Raises:
      ValueError: these arguments do not make a round.
    """
    node_ids, threshold = [int(node) for node in node_ids], settings.threshold
    if len(set(node_ids)) < len(node_ids) or not weights or max_examples < 1:
        raise ValueError(f"node_ids {node_ids}, {len(weights)} arrays of weights, max_examples {max_examples}; expected "
                         "different ids, at least one array and a count from 1.")
    if len(node_ids) * settings.quantization_range >= MODULUS:
        raise ValueError(f"The sum of {len(node_ids)} hospitals with quantization_range {settings.quantization_range} does "
                         "not fit below 2^32; choose a smaller range.")
    if len(node_ids) < threshold:
        return SecureResult(None, _too_few(len(node_ids), len(node_ids), threshold, Stage.SETUP), {}, [], Stage.SETUP)
    _check_majority(threshold, len(node_ids))
    use_strong_masks()
    context, published = _round_context(weights, node_ids, round_num, config)
    state, failures, stage, reason = _SERVER_SIDE.WorkflowState(), [], Stage.SETUP, ""
    # As many shares as hospitals: each is a neighbour of all. Given as a part of 1, which Flower allows also for two.
    flow = _SERVER_SIDE.SecAggPlusWorkflow(
        1.0, threshold, max_weight=float(max_examples), clipping_range=float(settings.clipping_range),
        quantization_range=settings.quantization_range, modulus_range=MODULUS, timeout=settings.timeout_s,
    )  # fmt: skip
    steps = (flow.setup_stage, flow.share_keys_stage, flow.collect_masked_vectors_stage, flow.unmask_stage)
    size = sum(np.size(array) for array in weights) + 1
    try:
        for stage, step in zip(Stage.all(), steps, strict=True):
            if not step(_watched(grid, stage, size, failures), context, state):
                reason = _too_few(len(state.active_node_ids), len(node_ids), threshold, stage)
                break
            if stage in (Stage.SETUP, Stage.SHARE_KEYS):
                # Flower goes on asking for shares of those that left before they gave any, on which every hospital
                # fails. They have no mask with anyone: as if they had never been asked.
                state.sampled_node_ids = set(state.active_node_ids)
                state.nid_to_neighbours = {node: set(state.active_node_ids) for node in state.active_node_ids}
    except Exception as error:  # answers that Flower cannot read: the round is lost, the server is not
        failures.append((None, f"{stage}: {type(error).__name__}: {error}"))
        reason = f"The {stage} stage broke off: {type(error).__name__}: {error}. Nothing was published."
    answered = {proxy.node_id: {**fit.metrics, "num_examples": fit.num_examples} for proxy, fit in state.legacy_results}
    counts = [facts["num_examples"] for facts in answered.values()]
    if not reason and not _unmasked(published, counts, settings, max_examples):
        reason = ("The number that checks the sum came back wrong: what a hospital sent was not masked as its keys say. "
                  "Nothing was published.")
    if reason:
        return SecureResult(None, reason, answered, failures, stage)
    mean = _cut(published[0][:-1], [np.shape(array) for array in weights])
    return SecureResult(mean, f"The mean of {len(answered)} of {len(node_ids)} hospitals.", answered, failures, stage)


def _cut(vector: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The arrays of these shapes that stand one after another in a vector."""
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    return [vector[end - math.prod(shape) : end].reshape(shape) for end, shape in zip(ends, shapes, strict=True)]


def _check_majority(threshold: int, hospitals: int) -> None:
    if not 2 <= threshold <= hospitals < 2 * threshold:
        raise ValueError(f"The threshold is {threshold} of {hospitals} hospitals; expected at least 2, and more than half "
                         "of them: with half or fewer a server that lies could uncover an update.")


def _check_survivors(request: Mapping, state: Mapping, own: int) -> None:
    """Both halves of what hides a hospital's update must never be given away, nor a sum over fewer than it seems."""
    if state.get("current_stage") == Stage.UNMASK:
        raise ValueError("This round was unmasked already; a second list of survivors is refused.")
    active, dropped = list(request[Key.ACTIVE_NODE_ID_LIST]), list(request[Key.DEAD_NODE_ID_LIST])
    if both := sorted(set(active) & set(dropped)):
        raise ValueError(f"Hospitals {both} are listed both as active and as dropped; their updates would be uncovered.")
    if len(set(active)) < len(active):
        raise ValueError(f"The list of active hospitals {active} names one twice; fewer would be summed than it seems.")
    if own not in active:
        raise ValueError(f"The list of active hospitals {active} lacks {own}, which is asked to unmask the sum.")


def _flattened(reply: Message, state: Mapping) -> Message:
    """The update as one clipped vector and a number that checks the sum; a reply with nothing else than the metrics."""
    if reply.has_error():
        raise ValueError(f"Training gave no update: {reply.error.reason}")
    answer = compat.recorddict_to_fitres(reply.content, keep_input=True)
    limit, steps = state["clipping_range"], state["target_range"]
    if not 1 <= round(answer.num_examples / state["max_weight"] * steps) <= steps:
        raise ValueError(f"num_examples is {answer.num_examples}; expected from 1 to max_examples, {state['max_weight']:g}, "
                         f"and not so few that {steps} steps of quantisation make it 0.")
    # One vector costs less than many arrays, and Flower loses the offset of arrays of shape (). Doubles, because float32
    # has hardly more digits than there are steps. Clipped here, because Flower clips only after weighting.
    arrays = [array.astype(np.float64).ravel() for array in parameters_to_ndarrays(answer.parameters)]
    vector = np.concatenate([*arrays, [limit / 2]])
    if not np.isfinite(vector).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(vector))} numbers of the update are not finite; nothing was sent.")
    answer.parameters = ndarrays_to_parameters([np.clip(vector, -limit, limit)])
    reply.content = compat.fitres_to_recorddict(answer, keep_input=True)
    return reply


def _unmasked(published: list[np.ndarray], counts: list[int], settings: SecureSettings, max_examples: int) -> bool:
    """Whether the check number, the same at every hospital, came back: masks that remain would have moved it anywhere."""
    steps, limit = settings.quantization_range, settings.clipping_range
    ratios = sum(round(count / max_examples * steps) for count in counts) / steps
    return ratios > 0 and bool(abs(published[0][-1] - limit / 2) <= 1.01 * len(counts) / ratios * 2 * limit / steps)


def _round_context(weights, node_ids, round_num: int, config: Mapping) -> tuple[LegacyContext, list[np.ndarray]]:
    """What Flower's workflow asks its surroundings for, and the list where it will put the mean."""
    published: list[np.ndarray] = []

    def configure_fit(_, parameters, __):
        return [(SimpleNamespace(node_id=node), FitIns(parameters, dict(config))) for node in node_ids]

    def aggregate_fit(_, results, __):
        published.extend(parameters_to_ndarrays(results[0][1].parameters))  # the same mean in each
        return None, {}

    strategy = SimpleNamespace(configure_fit=configure_fit, aggregate_fit=aggregate_fit)
    manager = SimpleNamespace(num_available=lambda: len(node_ids))
    context = LegacyContext(Context(0, 0, {}, RecordDict(), {}), strategy=strategy, client_manager=manager)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: int(round_num)})
    parameters = ndarrays_to_parameters([np.asarray(array) for array in weights])
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(parameters, keep_input=True)
    return context, published


def _watched(grid: Grid, stage: str, size: int, failures: list) -> SimpleNamespace:
    """The grid for one stage: passes on one good answer of each hospital, and notes who gave none, and why."""

    def send_and_receive(messages, *, timeout=None):
        messages, good = list(messages), []
        waiting = {message.metadata.dst_node_id for message in messages}
        replies = list(grid.send_and_receive(messages, timeout=timeout))
        by_message = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error() and node not in waiting:  # the server's own word about a hospital
                node = by_message.get(reply.metadata.reply_to_message_id) if reply.metadata.reply_to_message_id else None
            wrong = "an answer that was not asked for" if node not in waiting else _misfit(reply, stage, size)
            if wrong:
                failures.append((node, f"{stage}: {wrong}"))
            else:
                good.append(reply)
            waiting.discard(node)
        failures.extend((node, f"{stage}: no answer within {timeout:g} s") for node in sorted(waiting))
        return good

    return SimpleNamespace(send_and_receive=send_and_receive)


def _misfit(reply: Message, stage: str, size: int) -> str | None:
    if reply.has_error():
        return reply.error.reason or f"error {reply.error.code}"
    if stage == Stage.COLLECT_MASKED_VECTORS:
        sent = (reply.content.config_records.get(RECORD_KEY_CONFIGS) or {}).get(Key.MASKED_PARAMETERS, [])
        shapes = [bytes_to_ndarray(data).shape for data in sent]
        if shapes != [(1,), (size,)]:
            return f"masked arrays of shapes {shapes}; expected {[(1,), (size,)]}, the model's size and one"
    return None


def _too_few(there: int, asked: int, threshold: int, stage: str) -> str:
    if there >= threshold:
        return f"The answers of the {stage} stage lack shares of keys. Nothing was published."
    return f"{there} of {asked} hospitals answered in the {stage} stage; {threshold} are needed. Nothing was published."
