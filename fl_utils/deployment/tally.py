"""From the hospitals' sums to the metrics of a common model, as `learning.evaluation.curve_metrics` gives them."""

import json
from collections.abc import Mapping

import numpy as np

Row = tuple[int, str, str, str, float]
#: Images of a class: no sum of such counts overflows.
_MOST = 10**9


def read_judged(text: str, num_classes: int) -> dict[str, tuple[np.ndarray, float]]:
    """A hospital's sums: part -> (confusion int [K, K], summed loss).

    Raises:
      ValueError: they are not what `Hospital.judge` gives.
    """
    try:
        sums, found = json.loads(text), {}
        if not isinstance(sums, dict):
            raise ValueError("no JSON object")
        for part in ("validation", "test"):
            if f"{part}_confusion" in sums:
                confusion = np.array(sums[f"{part}_confusion"], np.int64).reshape(num_classes, num_classes)
                loss = float(sums[f"{part}_loss"])
                if not (0 <= confusion.min() and 0 < confusion.max() <= _MOST and np.isfinite(loss)):
                    raise ValueError("counts that are negative, all 0 or beyond all reason, or a loss that is not finite")
                found[part] = confusion, loss
        return found
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"its scores cannot be read: {error}") from None


def metrics_of(confusion: np.ndarray, loss: float) -> dict[str, float]:
    """Accuracy, balanced accuracy and mean loss.

    Args:
      confusion: int [K, K], true class by predicted one, at least one image.
      loss: summed over the images.
    """
    counts, hits = confusion.sum(axis=1), np.diag(confusion)
    present = counts > 0
    return {
        "accuracy": float(hits.sum() / counts.sum()),
        "balanced_accuracy": float((hits[present] / counts[present]).mean()),
        "loss": loss / float(counts.sum()),
    }


def tally(round_num: int, judged: Mapping[int, Mapping[str, tuple[np.ndarray, float]]]) -> tuple[list[Row], tuple[float, float]]:
    """Scores of the model of a round, from what the hospitals counted.

    Args:
      round_num: after which the model was judged.
      judged: hospital -> what `read_judged` gave.
    Returns:
      Rows (round, client, split, metric, value): client "all", splits "validation" and "test", over the images of all who
      answered; and each hospital's "validation" and "own_test". And the score that selects: balanced accuracy and minus
      loss on validation; minus infinity where nobody has validation images.
    """
    rows, score = [], (-np.inf, -np.inf)
    for part in ("validation", "test"):
        parts = {hospital: found[part] for hospital, found in sorted(judged.items()) if part in found}
        if not parts:
            continue
        values = metrics_of(sum(confusion for confusion, _ in parts.values()), sum(loss for _, loss in parts.values()))
        rows += [(round_num, "all", part, metric, value) for metric, value in values.items()]
        if part == "validation":
            score = values["balanced_accuracy"], -values["loss"]
        split = "own_test" if part == "test" else part
        for hospital, (confusion, loss) in parts.items():
            rows += [(round_num, str(hospital), split, metric, value) for metric, value in metrics_of(confusion, loss).items()]
    return rows, score
