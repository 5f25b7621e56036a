"""Rules that combine client updates so that a few bad ones do not decide: plain TensorFlow, no `tff.*`.

Every rule takes the updates as rows, float32 [n, d], one a client and all finite (`aggregators` leaves out the others),
and gives one update, float32 [d]. The order of the clients does not matter. What a rule tolerates stands beside it as
the number of rows that may be anything at all, an attacker's choice that knows the other rows included. It bounds how
far the result goes, no more: an attack that stays inside the spread of the honest rows is not stopped by any of them.
"""

import tensorflow as tf


def coordinate_median(updates: tf.Tensor) -> tf.Tensor:
    """The median of each coordinate; of an even number of rows, the mean of the middle two.

    Tolerates fewer than n / 2 rows: each coordinate stays between the smallest and the largest honest value.

    Args:
      updates: float32 [n, d], n >= 1.
    Returns:
      float32 [d].
    Raises:
      ValueError: not a matrix, or no rows.
    Source: Yin et al. 2018, arXiv:1803.01498, Definition 1.
    """
    updates = _checked(updates)
    ordered, n = tf.sort(updates, axis=0), tf.shape(updates)[0]
    return 0.5 * ordered[(n - 1) // 2] + 0.5 * ordered[n // 2]


def trimmed_mean(updates: tf.Tensor, *, share: float) -> tf.Tensor:
    """The mean of each coordinate without its k = floor(share n) smallest and k largest values.

    Tolerates k rows: each coordinate stays between the smallest and the largest honest value.

    Args:
      updates: float32 [n, d], n >= 1.
      share: beta of the paper, in [0, 0.5); 0 is the plain mean.
    Returns:
      float32 [d].
    Raises:
      ValueError: not a matrix, no rows, or the share out of range.
    Source: Yin et al. 2018, arXiv:1803.01498, Definition 2.
    """
    updates = _checked(updates)
    if not 0 <= share < 0.5:
        raise ValueError(f"share is {share}; expected the share to trim at each end, at least 0 and below 0.5.")
    n = tf.shape(updates)[0]
    # 0.29 of 100 is 29, though the product in floating point is a little less.
    cut = tf.cast(tf.floor(tf.cast(n, tf.float64) * share + 1e-9), tf.int32)
    return tf.reduce_mean(tf.sort(updates, axis=0)[cut : n - cut], axis=0)


def krum_scores(updates: tf.Tensor, *, num_malicious: int) -> tf.Tensor:
    """Of each row, the sum of squared distances to its n - f - 2 nearest others (at least one); low is trusted.

    Args:
      updates: float32 [n, d], n >= 1.
      num_malicious: f >= 0, how many rows are taken to be bad.
    Returns:
      float32 [n].
    Raises:
      ValueError: not a matrix, no rows, or f below 0.
    Source: Blanchard et al. 2017, "Machine learning with adversaries", NeurIPS 30, section 4.
    """
    updates = _checked(updates)
    if num_malicious < 0:
        raise ValueError(f"num_malicious is {num_malicious}; expected 0 or more.")
    # Row by row: the product of all pairs loses what is small beside one huge row, and n x n x d does not fit.
    distances = tf.map_fn(lambda row: tf.reduce_sum(tf.square(updates - row), axis=1), updates)
    nearest = tf.maximum(tf.shape(updates)[0] - num_malicious - 2, 1)
    return tf.reduce_sum(tf.sort(distances, axis=1)[:, 1 : nearest + 1], axis=1)  # the first is the row itself


def krum(updates: tf.Tensor, *, num_malicious: int) -> tf.Tensor:
    """The one row of the lowest score.

    Tolerates f rows if n >= 2 f + 3. With fewer rows it still gives one of them, without that promise.

    Args, Returns, Raises, Source: as `multi_krum` with `num_selected` 1.
    """
    return multi_krum(updates, num_malicious=num_malicious, num_selected=1)


def multi_krum(updates: tf.Tensor, *, num_malicious: int, num_selected: int) -> tf.Tensor:
    """The mean of the m rows of the lowest scores, each row counting alike.

    Tolerates f rows if n >= 2 f + 3 and m <= n - f. Otherwise it still gives a mean of rows, without that promise.

    Args:
      updates: float32 [n, d], n >= 1.
      num_malicious: f >= 0, see `krum_scores`.
      num_selected: m >= 1; of fewer rows than that, all are taken.
    Returns:
      float32 [d].
    Raises:
      ValueError: not a matrix, no rows, f below 0 or m below 1.
    Source: Blanchard et al. 2017, "Machine learning with adversaries", NeurIPS 30, sections 4 and 7 (m-Krum). The
      paper breaks ties by the clients' numbers; here it is by a fixed projection of the rows, blind to their order.
    """
    if num_selected < 1:
        raise ValueError(f"num_selected is {num_selected}; expected 1 or more.")
    updates = _checked(updates)
    # Two nearest neighbours of each other tie exactly when one neighbour counts, so ties are no rarity.
    direction = tf.random.stateless_uniform([tf.shape(updates)[1]], seed=[3, 1])
    updates = tf.gather(updates, tf.argsort(tf.reduce_sum(updates * direction, axis=1), stable=True))
    best = tf.argsort(krum_scores(updates, num_malicious=num_malicious), stable=True)[:num_selected]
    return tf.reduce_mean(tf.gather(updates, best), axis=0)


def geometric_median(
    updates: tf.Tensor, weights: tf.Tensor | None = None, *, smoothing: float = 1e-6, tolerance: float = 1e-5,
    max_iterations: int = 100,
) -> tf.Tensor:
    """The point of the smallest weighted sum of distances to the rows, by the smoothed Weiszfeld algorithm.

    Tolerates rows that hold less than half of the weight. If alpha is their share, the result is at most
    2 (1 - alpha) / (1 - 2 alpha) times as far from any point as the farthest honest row (triangle inequality on the sum
    of distances). Weights are what clients say of themselves: one that claims half of all examples decides alone.

    Args:
      updates: float32 [n, d], n >= 1.
      weights: float32 [n], not negative, their sum above 0; None counts rows alike.
      smoothing: nu of the paper: distances below it count as it.
      tolerance: the search ends when a step is shorter than this share of the median distance to the rows.
      max_iterations: passes over the rows at most. The paper stops after about three; each pass costs it a round.
    Returns:
      float32 [d].
    Raises:
      ValueError: not a matrix, or no rows.
    Source: Pillutla et al. 2019, arXiv:1912.13445, Algorithm 2. It starts at the mean, from which one huge row takes
      many passes to forget; here it is the mean of the n // 2 + 1 rows nearest to the coordinate median.
    """
    updates = _checked(updates)
    n = tf.shape(updates)[0]
    weights = tf.ones([n]) if weights is None else tf.convert_to_tensor(weights, tf.float32)
    median = coordinate_median(updates)
    nearest = tf.argsort(tf.norm(updates - median, axis=1), stable=True)[: n // 2 + 1]
    start = tf.reduce_mean(tf.gather(updates, nearest), axis=0)

    def goes_on(point, step_length, scale):
        return step_length > tolerance * scale

    def one_pass(point, *_):
        differences = updates - point
        distances = tf.norm(differences, axis=1)
        pull = weights / tf.maximum(distances, smoothing)
        step = tf.linalg.matvec(differences, pull / tf.reduce_sum(pull), transpose_a=True)
        return point + step, tf.norm(step), tf.sort(distances)[n // 2]

    # The first pass is always made: infinity is longer than any share of 0.
    return tf.while_loop(
        goes_on, one_pass, (start, tf.constant(float("inf")), tf.constant(0.0)), maximum_iterations=max_iterations
    )[0]


def fltrust(updates: tf.Tensor, server_update: tf.Tensor) -> tf.Tensor:
    """The mean of the rows, scaled to the server's own update's length, weighted by max(0, cosine to it).

    Tolerates any number of rows in this sense: the result is never longer than the server's update and never points
    away from it. The paper states no number; what is learned beyond the server's own data rests on honest rows, and all
    of it on that data being clean and like the clients'.

    Args:
      updates: float32 [n, d], n >= 1.
      server_update: float32 [d], what the server's training on its small clean set gives.
    Returns:
      float32 [d]; zero where no row points the server's way, or the server's update is zero.
    Raises:
      ValueError: not a matrix, no rows, or the server's update of another length.
    Source: Cao et al. 2021, arXiv:2012.13995, equations 2 to 4.
    """
    updates, server_update = _checked(updates), tf.convert_to_tensor(server_update, tf.float32)
    if not server_update.shape.is_compatible_with(updates.shape[1:]):
        raise ValueError(f"server_update has shape {server_update.shape}; expected {updates.shape[1:]}, as the rows.")
    directions = tf.math.divide_no_nan(updates, tf.norm(updates, axis=1, keepdims=True))
    length = tf.norm(server_update)
    trust = tf.nn.relu(tf.linalg.matvec(directions, tf.math.divide_no_nan(server_update, length)))
    mean = tf.linalg.matvec(directions, tf.math.divide_no_nan(trust, tf.reduce_sum(trust)), transpose_a=True)
    return length * mean


def _checked(updates) -> tf.Tensor:
    updates = tf.convert_to_tensor(updates, tf.float32)
    if updates.shape.rank != 2 or updates.shape[0] == 0:
        raise ValueError(f"updates have shape {updates.shape}; expected [n, d], one row a client and at least one.")
    return updates
