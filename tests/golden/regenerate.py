"""Writes the golden metrics anew, after a change that is meant to change them:

    python tests/golden/regenerate.py            # all
    python tests/golden/regenerate.py scaffold   # those that are named

Say in the commit why they changed. The tests import `three_rounds` from here; they never write.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
#: By method: its fields beside the golden ones.
METHODS = {
    "centralized": {},
    "local": {},
    "fedavg": {},
    "scaffold": {
        "model": "small_cnn", "partition": "dirichlet", "dirichlet_alpha": 1.0, "client_momentum": 0.0,
        "server_learning_rate": 0.8,
    },
    "fedadam": {
        "model": "small_cnn", "partition": "pathological", "classes_per_client": 2, "client_momentum": 0.0,
        "server_learning_rate": 0.01,
    },
}


def three_rounds(method: str, **fields) -> dict:
    """Trains three rounds on small phantoms; needs FL_UTILS_RESULTS and FL_UTILS_CACHE set to folders of one's own.

    Args:
      method: one of METHODS.
      **fields: of the configuration, other than the golden ones and the method's.
    Returns:
      config, dataset_fingerprint, view_sizes (images by "client split"), and the rows [round, client, split, metric,
      value] of the learning curves.
    """
    from fl_utils.experiments import plans
    from fl_utils.experiments.run import run

    # Every size and rate is stated: profiles may change theirs without changing these numbers.
    golden = {
        "num_clients": 1 if method == "centralized" else 4, "num_images": 96, "image_size_px": 24, "total_rounds": 3,
        "client_epochs_per_round": 1, "client_batch_size": 8, "client_learning_rate": 0.03, "seed": 0,
    }
    config = plans.base_config("smoke", "phantom_brain", method=method, **(golden | METHODS[method] | fields))
    record = run(config, experiment="golden", progress=False)
    curve = record.metrics.query("metric in ('loss', 'accuracy')")
    sizes = {"all test": len(record.predictions) // record.predictions["client"].nunique()}
    for part in ("validation", "test"):
        counts = [sum(row) for row in record.environment["class_counts"][part]]
        for client, size in [("all", sum(counts)), *enumerate(counts)]:
            sizes[f"{client} {'own_test' if part == 'test' and client != 'all' else part}"] = size
    for client in record.environment["selected_round"]:
        sizes[f"{client} test"] = sizes["all test"]
    return {
        "config": record.config,
        "dataset_fingerprint": record.environment["dataset_fingerprint"],
        "view_sizes": sizes,
        "rows": curve.values.tolist(),
    }


def write(golden: dict, path: Path) -> None:
    """One row a line, so that a change reads well in a diff."""
    rows = ",\n    ".join(json.dumps(row) for row in golden["rows"])
    head = json.dumps({field: golden[field] for field in golden if field != "rows"}, indent=2)
    path.write_text(head[:-2] + f',\n  "rows": [\n    {rows}\n  ]\n}}\n')


def main(methods: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"FL_UTILS_RESULTS": f"{folder}/results", "FL_UTILS_CACHE": f"{folder}/cache"}
        for method in methods or METHODS:
            write(three_rounds(method), FOLDER / f"{method}.json")
        if "tensorflow_federated" in sys.modules:
            from fl_utils.learning import engine

            engine.stop()  # before its log's folder goes


if __name__ == "__main__":
    main(sys.argv[1:])
