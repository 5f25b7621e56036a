"""What a round of real processes costs over its training, by how messages travel, measured in one run.

    python benchmarks/federation_overhead.py                  # phantoms: about 3 minutes on 2 cores
    python benchmarks/federation_overhead.py --profile paper  # the deployed run's work on real images

The ratio of a round's seconds to the slowest hospital's own work in it is what counts; see notebook 08.
"""

import argparse

from fl_utils.federation_studies import measured_rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick")
    table = measured_rounds(parser.parse_args().profile)
    medians = table.groupby("label", sort=False)[["duration_s", "work_s", "over_s"]].median()
    print(medians.assign(ratio=medians["duration_s"] / medians["work_s"]).round(3).to_string())


if __name__ == "__main__":
    main()
