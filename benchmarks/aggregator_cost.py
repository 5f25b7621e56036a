"""What each robust rule costs the server beside the mean, measured in one run.

    python benchmarks/aggregator_cost.py                     # 10 and 100 hospitals: about 3 minutes on 2 cores
    python benchmarks/aggregator_cost.py --hospitals 10 --rounds 9

Times are medians of a round's combining in TFF; what counts are the ratios to the mean.
"""

import argparse

from fl_utils.experiments.aggregator_cost import SIZES, cost_table


def main() -> None:
    numbers, rounds = SIZES["paper"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hospitals", type=int, nargs="+", default=list(numbers))
    parser.add_argument("--rounds", type=int, default=rounds)
    arguments = parser.parse_args()
    table = cost_table(tuple(arguments.hospitals), arguments.rounds, progress=True)
    print(table.pivot(index="label", columns="hospitals", values=["seconds", "ratio"]).round(3).to_string())


if __name__ == "__main__":
    main()
