"""Robust rules as TFF aggregation factories, for `aggregator=` of `process.build_process`.

Every factory here leaves out a client whose update or weight is not finite, and says so in its state, which
`build_process` keeps under "aggregator":

  left_out: int64 [k], the places of those clients in the list that `next` was given; see `left_out`.
  num_clients: int32, how many clients the round had.
  inner: the state of the rule.

If all are left out, the result is a zero update: under plain averaging the weights stay as they are, and the caller
sees k = num_clients. An error raised inside TFF's graph would cost the round's state and could name no client.

TFF gives clients no number, and `tff.federated_aggregate` promises no order. What is collected here comes in the order
of the list with TFF's local runtime, which a test checks; reservoir sampling draws random numbers only to drop
clients, and none is dropped. No rule depends on the order. The reports of `build_process` come by client and tell the
same without that assumption: the `update_norm` of these clients is not finite.

The rules need every single update at the server: they cannot be used over encrypted or masked sums.
"""

import collections
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from fl_utils.learning import robust

Factory = tff.aggregators.WeightedAggregationFactory
#: Of updates float32 [n, d], weights float32 [n] and the server's own update float32 [d] to one update float32 [d].
Rule = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
#: A reservoir of this size holds every client.
NO_LIMIT = np.iinfo(np.int32).max


def mean() -> Factory:
    """The mean weighted by examples. Tolerates no bad client. Source: McMahan et al. 2017, arXiv:1602.05629."""
    return FiniteOnly(tff.aggregators.MeanFactory())


def norm_clipping(clipping_norm: float | None = None) -> Factory:
    """The weighted mean of updates cut to an L2 norm (TFF's own). Bounds each client's pull; tolerates no bad client.

    Args:
      clipping_norm: > 0; None follows the 0.8 quantile of the norms with TFF's settings, starting at 1.
    Raises:
      ValueError: the norm is not above 0.
    Source: Sun et al. 2019, arXiv:1911.07963; the adaptive norm: Andrew et al. 2021, arXiv:1905.03871.
    """
    if clipping_norm is None:
        return FiniteOnly(tff.learning.robust_aggregator(zeroing=False, clipping=True))
    return FiniteOnly(
        tff.aggregators.clipping_factory(_positive("clipping_norm", clipping_norm), tff.aggregators.MeanFactory())
    )


def norm_zeroing(zeroing_norm: float | None = None) -> Factory:
    """The weighted mean with too long updates set to zero (TFF's own); they keep their weight.

    Tolerates no bad client that stays below the norm.

    Args:
      zeroing_norm: L2 norm, > 0; None is TFF's adaptive bound on the largest single value, twice a high quantile.
    Raises:
      ValueError: the norm is not above 0.
    Source: `tff.aggregators.zeroing_factory`.
    """
    if zeroing_norm is None:
        return FiniteOnly(tff.learning.robust_aggregator(zeroing=True, clipping=False))
    return FiniteOnly(tff.aggregators.zeroing_factory(
        _positive("zeroing_norm", zeroing_norm), tff.aggregators.MeanFactory(), norm_order=2.0
    ))


def coordinate_median() -> Factory:
    """See `robust.coordinate_median`; clients count alike."""
    return FiniteOnly(AllUpdates(lambda updates, weights, own: robust.coordinate_median(updates)))


def trimmed_mean(share: float) -> Factory:
    """See `robust.trimmed_mean`; clients count alike."""
    return FiniteOnly(AllUpdates(lambda updates, weights, own: robust.trimmed_mean(updates, share=share)))


def krum(num_malicious: int) -> Factory:
    """See `robust.krum`; clients count alike."""
    return multi_krum(num_malicious, 1)


def multi_krum(num_malicious: int, num_selected: int) -> Factory:
    """See `robust.multi_krum`; clients count alike."""
    return FiniteOnly(AllUpdates(
        lambda updates, weights, own: robust.multi_krum(updates, num_malicious=num_malicious, num_selected=num_selected)
    ))


def geometric_median(*, by_examples: bool = False, **search) -> Factory:
    """See `robust.geometric_median`, which takes `search`; `by_examples` weighs clients by what they say they hold."""
    return FiniteOnly(AllUpdates(
        lambda updates, weights, own: robust.geometric_median(updates, weights if by_examples else None, **search)
    ))


def fltrust() -> Factory:
    """See `robust.fltrust`; clients count by trust. Before each round the server's own update goes in by `trusting`."""
    return FiniteOnly(AllUpdates(lambda updates, weights, own: robust.fltrust(updates, own), with_own_update=True))


def trusting(aggregator_state, server_update: np.ndarray):
    """The state of `fltrust`'s process with the server's own update of the coming round.

    Args:
      aggregator_state: of the process; not changed.
      server_update: float32 [d], flattened and joined in the order of the weights.
    """
    inner = collections.OrderedDict(aggregator_state["inner"], own_update=np.asarray(server_update, np.float32))
    return collections.OrderedDict(aggregator_state, inner=inner)


def left_out(aggregator_state) -> list[int]:
    """The places, in the last round's list of clients, of those whose update was not finite; in rising order."""
    return [int(place) for place in aggregator_state["left_out"]]


class AllUpdates(Factory):
    """Hands the updates of all clients, flattened and stacked, to one rule. Clients of weight 0 take no part.

    State: `sampler`, and `own_update`, what the server itself would do: float32 [d], or [0] where the rule does not ask.

    Args:
      rule: sees at least one row; traced as a `tf.function`, n unknown.
      with_own_update: the rule asks for the server's own update.
    """

    def __init__(self, rule: Rule, *, with_own_update: bool = False):
        self._rule, self._with_own_update = rule, with_own_update

    def create(self, value_type, weight_type) -> tff.templates.AggregationProcess:
        sent = tff.types.to_type(collections.OrderedDict(update=value_type, weight=weight_type))
        sampler = tff.aggregators.UnweightedReservoirSamplingFactory(sample_size=NO_LIMIT).create(sent)
        shapes = [tuple(leaf.shape) for leaf in tff.structure.flatten(tff.types.to_type(value_type))]
        sizes = [int(np.prod(shape)) for shape in shapes]
        own_type = tff.TensorType(np.float32, [sum(sizes) if self._with_own_update else 0])

        @tff.tensorflow.computation(sampler.next.type_signature.result.result.member, own_type)
        @tf.function
        def combine(clients, own_update):
            # The size is written out: -1 is ambiguous where there are no rows.
            parts = [tf.reshape(part, [-1, size]) for part, size in zip(
                tf.nest.flatten(clients["update"]), sizes, strict=True)]
            taking_part = clients["weight"] > 0
            rows = tf.boolean_mask(tf.concat(parts, axis=1), taking_part)
            weights = tf.boolean_mask(clients["weight"], taking_part)
            flat = tf.cond(
                tf.reduce_any(taking_part), lambda: self._rule(rows, weights, own_update),
                lambda: tf.zeros([sum(sizes)]),
            )
            pieces = [tf.reshape(piece, shape) for piece, shape in zip(tf.split(flat, sizes), shapes, strict=True)]
            return tf.nest.pack_sequence_as(clients["update"], pieces)

        @tff.tensorflow.computation
        def no_update():
            return tf.zeros(own_type.shape)

        def state_of(sampler_state, own_update):
            return tff.federated_zip(collections.OrderedDict(sampler=sampler_state, own_update=own_update))

        @tff.federated_computation
        def initialize():
            return state_of(sampler.initialize(), tff.federated_eval(no_update, tff.SERVER))

        @tff.federated_computation(
            initialize.type_signature.result,
            tff.FederatedType(value_type, tff.CLIENTS), tff.FederatedType(weight_type, tff.CLIENTS),
        )
        def next_round(state, values, weights):
            clients = tff.federated_zip(collections.OrderedDict(update=values, weight=weights))
            sampled = sampler.next(state.sampler, clients)
            nothing = tff.federated_value((), tff.SERVER)
            return tff.templates.MeasuredProcessOutput(
                state_of(sampled.state, state.own_update),
                tff.federated_map(combine, (sampled.result, state.own_update)), nothing,
            )

        return tff.templates.AggregationProcess(initialize, next_round)


class FiniteOnly(Factory):
    """Gives clients that are not finite a zero update of weight 0 before `inner` sees them. State: see the module.

    Not finite: the L2 norm over all of the update (as `build_process` reports it), or the weight, is NaN or infinite,
    or the weight is negative. TFF's zeroing alone lets NaN through, as no comparison with it holds.
    """

    def __init__(self, inner: Factory):
        self._inner = inner

    def create(self, value_type, weight_type) -> tff.templates.AggregationProcess:
        inner = self._inner.create(value_type, weight_type)
        collector = tff.aggregators.UnweightedReservoirSamplingFactory(sample_size=NO_LIMIT).create(
            tff.TensorType(np.bool_)
        )

        @tff.tensorflow.computation(value_type, weight_type)
        def inspect(value, weight):
            norm = tf.linalg.global_norm(tf.nest.flatten(value))
            fits = tf.math.is_finite(norm) & tf.math.is_finite(weight) & (weight >= 0)
            kept = tf.nest.map_structure(lambda part: tf.where(fits, part, tf.zeros_like(part)), value)
            return kept, tf.where(fits, weight, tf.zeros_like(weight)), tf.logical_not(fits)

        @tff.tensorflow.computation(collector.next.type_signature.result.result.member)
        def places(bad):
            return tf.where(bad)[:, 0], tf.size(bad)

        @tff.tensorflow.computation
        def no_places():
            return tf.where([False])[:, 0], tf.constant(0)

        @tff.tensorflow.computation(inner.next.type_signature.result.result.member, places.type_signature.result)
        def zero_if_none(result, found):
            none = tf.equal(tf.size(found[0]), found[1])
            return tf.nest.map_structure(lambda part: tf.where(none, tf.zeros_like(part), part), result)

        def state_of(inner_state, found):
            return tff.federated_zip(
                collections.OrderedDict(inner=inner_state, left_out=found[0], num_clients=found[1])
            )

        @tff.federated_computation
        def initialize():
            return state_of(inner.initialize(), tff.federated_eval(no_places, tff.SERVER))

        @tff.federated_computation(
            initialize.type_signature.result,
            tff.FederatedType(value_type, tff.CLIENTS), tff.FederatedType(weight_type, tff.CLIENTS),
        )
        def next_round(state, values, weights):
            kept, kept_weights, bad = tff.federated_map(inspect, (values, weights))
            found = tff.federated_map(places, collector.next(collector.initialize(), bad).result)
            combined = inner.next(state.inner, kept, kept_weights)
            return tff.templates.MeasuredProcessOutput(
                state_of(combined.state, found),
                tff.federated_map(zero_if_none, (combined.result, found)),
                combined.measurements,
            )

        return tff.templates.AggregationProcess(initialize, next_round)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} is {value}; expected a norm above 0.")
    return float(value)
