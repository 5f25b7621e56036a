"""Looks for bad hospitals in one round's updates: principal components of the last layer, and cosine distances.

Both are looks, not defences: the server must see single updates, and what is flagged is not left out of the mean.
"""

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import StandardScaler

#: Mean silhouette from which two clusters count as apart; 0.5 is "a reasonable structure" in Kaufman and Rousseeuw
#: 1990, Finding Groups in Data, chapter 2.
SILHOUETTE = 0.5
#: Modified z-score above which a value is an outlier, and the factor that makes it one of a normal distribution
#: (Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers).
OUTLIER, NORMAL = 3.5, 0.6745
#: Fewer finite updates than this are too few to say who is different.
LEAST_UPDATES = 4
#: Distances that differ by less are rounding of float32 updates.
RESOLUTION = 1e-6


def look(updates: np.ndarray, last_layer: slice | np.ndarray) -> dict[str, np.ndarray]:
    """How each hospital's update lies among those of its round, and which ones two detectors flag.

    The components are after Tolpegin et al., who collect, over several rounds, the updates of the weights into the
    output node of the class that they suspect, standardise them, draw two principal components and look by eye. Here:
    each round alone, the whole last layer (nobody is suspected beforehand), and clusters in place of the eye.

    - `flag_pca`: 2-means on the two components; if their mean silhouette is at least `SILHOUETTE`, the smaller
      cluster is flagged, so more than half of the hospitals must be honest. Clusters of one size flag nobody.
    - `flag_cosine`: modified z-score 0.6745 (x - median) / MAD of the cosine distance above `OUTLIER`; where the MAD
      is 0, whatever lies above the median by more than `RESOLUTION`.

    Args:
      updates: float [n, d], one a hospital. A row that is not finite takes no part: its numbers are NaN, its flags
        False.
      last_layer: the columns (slice, or int [k], k >= 2) of the classifier's last layer.
    Returns:
      Arrays [n]: norm (L2); cosine_distance (1 - cosine to the coordinate median of the finite updates, 0 to 2; 1 where
      either is all 0); pca_0, pca_1 (of the standardised last-layer updates; the first of a component's largest
      loadings is positive); flag_pca, flag_cosine (bool). The order of the hospitals changes no number. With fewer
      than `LEAST_UPDATES` finite updates nothing is flagged and the components are NaN.
    Raises:
      ValueError: updates that are not float [n >= 1, d], or columns that are not there or fewer than two.
    Source: Tolpegin et al. 2020, arXiv:2007.08432; Iglewicz and Hoaglin 1993, for the z-score.
    """
    columns = _checked_columns(updates, last_layer)
    n = len(updates)
    found = {name: np.full(n, np.nan) for name in ("norm", "cosine_distance", "pca_0", "pca_1")}
    found |= {name: np.zeros(n, bool) for name in ("flag_pca", "flag_cosine")}
    # In an order of their own, so that sums, clusters and ties come out alike however the hospitals are numbered.
    rows = sorted(np.flatnonzero(np.isfinite(updates).all(axis=1)), key=lambda row: updates[row].tobytes())
    if not rows:
        return found
    finite = updates[rows].astype(np.float64)
    found["norm"][rows] = np.linalg.norm(finite, axis=1)
    found["cosine_distance"][rows] = distance = _cosine_distance(finite, np.median(finite, axis=0))
    if len(rows) >= LEAST_UPDATES:
        points = _components(finite[:, columns])
        found["pca_0"][rows], found["pca_1"][rows] = points.T
        found["flag_pca"][rows] = _smaller_cluster(points)
        found["flag_cosine"][rows] = _far_above(distance)
    return found


def precision_recall(flags: np.ndarray, attackers: np.ndarray) -> tuple[float, float, float]:
    """How good flags are.

    Args:
      flags, attackers: bool, of one shape.
    Returns:
      Precision (attackers among the flagged; NaN if nobody is), recall (flagged among the attackers; NaN if there are
      none) and false alarm rate (flagged among the honest ones; NaN if there are none).
    Raises:
      ValueError: shapes differ, or values other than 0 and 1.
    """
    flags, attackers = np.asarray(flags), np.asarray(attackers)
    if flags.shape != attackers.shape or not (np.isin(flags, (0, 1)).all() and np.isin(attackers, (0, 1)).all()):
        raise ValueError(
            f"Expected flags and attackers of one shape, True or False each; got {flags.shape} and {attackers.shape}, "
            f"values {np.unique(np.append(flags, attackers))[:5].tolist()}."
        )
    flags, attackers = flags.astype(bool), attackers.astype(bool)
    return _share(attackers[flags]), _share(flags[attackers]), _share(flags[~attackers])


def _share(true: np.ndarray) -> float:
    return float(true.mean()) if true.size else float("nan")


def _cosine_distance(updates: np.ndarray, center: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(updates, axis=1) * np.linalg.norm(center)
    cosine = np.divide(updates @ center, lengths, out=np.zeros(len(updates)), where=lengths > 0)
    return 1 - np.clip(cosine, -1, 1)


def _components(updates: np.ndarray) -> np.ndarray:
    """Two principal components [n, 2] of standardised columns; a column in which all agree stays 0."""
    standard = StandardScaler().fit_transform(updates)
    if not standard.any():
        return np.zeros((len(updates), 2))
    pca = PCA(n_components=2, svd_solver="full").fit(standard)
    size = np.abs(pca.components_)
    # Loadings of two classes may be equal but for rounding: the first of them decides.
    first = (size >= size.max(axis=1, keepdims=True) * (1 - 1e-6)).argmax(axis=1)
    return pca.transform(standard) * np.sign(pca.components_[[0, 1], first])


def _smaller_cluster(points: np.ndarray) -> np.ndarray:
    n = len(points)
    if len(np.unique(points, axis=0)) < 2:
        return np.zeros(n, bool)
    second = KMeans(n_clusters=2, n_init=10, random_state=0).fit_predict(points) == 1
    if 2 * second.sum() == n or silhouette_score(points, second) < SILHOUETTE:
        return np.zeros(n, bool)
    return second if 2 * second.sum() < n else ~second


def _far_above(distance: np.ndarray) -> np.ndarray:
    above = distance - np.median(distance)
    return (above > RESOLUTION) & (NORMAL * above > OUTLIER * np.median(np.abs(above)))


def _checked_columns(updates: np.ndarray, last_layer: slice | np.ndarray) -> np.ndarray:
    if getattr(updates, "ndim", 0) != 2 or 0 in updates.shape or not np.issubdtype(updates.dtype, np.floating):
        raise ValueError(
            f"Expected updates as a float array [n, d], one row a hospital; got {type(updates).__name__} "
            f"{getattr(updates, 'shape', '')} of {getattr(updates, 'dtype', 'no dtype')}. Stack flattened updates."
        )
    try:
        columns = np.arange(updates.shape[1])[last_layer]
    except IndexError as error:
        raise ValueError(f"last_layer does not fit updates of {updates.shape[1]} columns: {error}") from error
    if np.ndim(columns) != 1 or len(columns) < 2:
        raise ValueError(f"last_layer takes {np.size(columns)} of {updates.shape[1]} columns; expected two or more.")
    return columns
