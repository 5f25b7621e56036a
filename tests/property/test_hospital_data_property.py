"""What must hold for every hospital: its folder gives back what was written into it, in the same order."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_utils.deployment.hospital_data import PARTS, load_hospital, write_hospital

SETTINGS = settings(max_examples=25, deadline=None)
#: File names as cameras and people give them: blanks, quotes, commas, dots, capitals, other alphabets.
STEMS = st.text(st.sampled_from("ab01 ,.'\"-_(Zé漢\n"), min_size=1, max_size=5).filter(lambda text: not text.startswith("."))


@st.composite
def hospitals(draw):
    class_names = draw(st.lists(STEMS, min_size=1, max_size=3, unique=True))
    size, rng = draw(st.integers(1, 9)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names, labels, images, patients = {}, {}, {}, {}
    for at, part in enumerate(PARTS):
        keys = st.tuples(STEMS, st.integers(0, len(class_names) - 1))
        files = sorted(draw(st.lists(keys, min_size=part == "train", max_size=5, unique=True)), key=lambda file: (f"{file[0]}.png", file[1]))
        names[part], labels[part] = [name for name, _ in files], np.array([label for _, label in files], int)
        images[part] = rng.integers(0, 256, (len(files), size, size, 1), dtype=np.uint8)
        patients[part] = np.array([f"{draw(st.sampled_from([' x', 'x', 'y,', '3']))}{at}" for _ in files])
    given_patients = patients if draw(st.booleans()) else None
    return {"images": images, "labels": labels, "names": names, "class_names": class_names, "patients": given_patients}, size


@SETTINGS
@given(hospitals())
def test_a_hospital_comes_back_as_it_was_written(drawn):
    hospital, size = drawn
    with tempfile.TemporaryDirectory() as root:
        write_hospital(Path(root) / "data", **hospital)
        parts = load_hospital(Path(root) / "data", class_names=hospital["class_names"], image_size_px=size)
    for name, part in parts.items():
        np.testing.assert_array_equal(part.images, hospital["images"][name])
        np.testing.assert_array_equal(part.labels, hospital["labels"][name])
        ids = hospital["patients"][name].tolist() if hospital["patients"] else list(range(len(part.labels)))
        seen = list(dict.fromkeys(ids))
        assert part.patients.tolist() == [seen.index(one) for one in ids]
