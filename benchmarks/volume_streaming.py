"""What preparing and streaming volumes of BraTS' size costs: time, disk and peak memory.

Drawn subjects (240 x 240 x 155 voxels, four modalities as int16 and a mask as uint8, .nii.gz) in the layout of
BraTS 2020 are prepared by one fresh process and streamed, shuffled, by another; each reports its own peak memory.

    python benchmarks/volume_streaming.py                # 8 subjects: about a minute and a half on 2 cores
    python benchmarks/volume_streaming.py --full         # streams 369 subjects: the prepared files under more names

Linked files come from the page cache: with --full the memory is that of 369 subjects, the speed that of a
dataset that fits into memory.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from fl_utils import paths
from fl_utils.data.catalogue.segmentation import BRATS2020
from fl_utils.data.prepare import prepare_volumes

SHAPE, FULL = (240, 240, 155), 369
MEMORY_LIMIT_MIB = 4096


def write_subject(folder: Path, subject: str, seed: int) -> None:
    """A head (an ellipsoid of noise) with a lesion of three nested classes; 0 around it."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE], indexing="ij", sparse=True)
    head = sum((axis / radius) ** 2 for axis, radius in zip(axes, (0.58, 0.72, 0.88), strict=True)) < 1
    centre = rng.uniform(-0.3, 0.3, 3)
    distance = sum((axis - middle) ** 2 for axis, middle in zip(axes, centre, strict=True)) ** 0.5
    mask = np.select([distance < 0.08, distance < 0.14, distance < 0.25], [1, 4, 2], 0).astype(np.uint8)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:2, 3] = 0, 239
    (folder / subject).mkdir(parents=True)
    for modality in BRATS2020.modalities:
        image = rng.normal(400 + 80 * mask, 60).clip(1, 3000).astype(np.int16) * head
        nib.save(nib.Nifti1Image(image, affine), folder / subject / f"{subject}_{modality}.nii.gz")
    nib.save(nib.Nifti1Image(mask * head, affine), folder / subject / f"{subject}_seg.nii.gz")


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def prepare_step(arguments) -> dict:
    start = time.perf_counter()
    data = prepare_volumes(BRATS2020, image_size_px=arguments.image_size_px, progress=False)
    seconds = time.perf_counter() - start
    return {
        "subjects": len(data.table), "slices": int(data.table["slices"].sum()), "seconds": seconds,
        "seconds_a_subject": seconds / len(data.table),
        "disk_mib": size_bytes(paths.cache_root() / "volumes") / 2**20, "peak_mib": peak_mib(),
    }


def stream_step(arguments) -> dict:
    data = prepare_volumes(BRATS2020, image_size_px=arguments.image_size_px, progress=False)
    if arguments.full:
        data = linked(data)
    start, num_slices = time.perf_counter(), 0
    for images, _ in data.stream(data.subjects, batch_size=arguments.batch_size, rng=np.random.default_rng(0)):
        num_slices += len(images)
    seconds = time.perf_counter() - start
    if num_slices != data.table["slices"].sum():
        raise AssertionError(f"{num_slices} slices streamed of {data.table['slices'].sum()}")
    disk_mib = sum(Path(path).stat().st_size for path in data.table["path"]) / 2**20
    return {
        "subjects": len(data.table), "slices": num_slices, "seconds": seconds, "slices_a_second": num_slices / seconds,
        "disk_mib": disk_mib, "peak_mib": peak_mib(),
    }


def linked(data):
    """The prepared cases under as many names as BraTS 2020 has subjects."""
    rows, lesions = [], {}
    folder = paths.cache_root() / "linked"
    folder.mkdir()
    for number in range(FULL):
        row = data.table.iloc[number % len(data.table)]
        name, path = f"linked_{number:03d}", folder / f"{number:03d}.npy"
        os.link(row["path"], path)
        rows.append({**row, "subject": name, "path": str(path)})
        lesions[name] = data.lesion_slices[row["subject"]]
    return replace(data, table=pd.DataFrame(rows), lesion_slices=lesions)


STEPS = {"prepare": prepare_step, "stream": stream_step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--full", action="store_true", help=f"stream {FULL} subjects")
    parser.add_argument("--image-size-px", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)  # how this file calls itself
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(STEPS[arguments.step](arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="volume_streaming-") as folder:
        environment = {**os.environ, "FL_UTILS_DATA": folder, "FL_UTILS_CACHE": str(Path(folder, "cache"))}
        for number in range(arguments.subjects):
            write_subject(Path(folder, BRATS2020.folder), f"BraTS20_Training_{number:03d}", number)
        results = {"source_mib": size_bytes(Path(folder)) / 2**20}
        for step in STEPS:
            command = [sys.executable, __file__, *sys.argv[1:], "--step", step]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            results[step] = json.loads(done.stdout)
    print(json.dumps(results, indent=1))
    print(pd.DataFrame({step: results[step] for step in STEPS}).round(2).to_string(na_rep=""))
    over = [step for step in STEPS if results[step]["peak_mib"] >= MEMORY_LIMIT_MIB]
    if over:
        sys.exit(f"More than {MEMORY_LIMIT_MIB} MiB: {', '.join(over)}")


if __name__ == "__main__":
    main()
