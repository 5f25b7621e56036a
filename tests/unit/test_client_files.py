"""The clients' raw files: what is written is what TFF's worker reads; nothing is written twice or by half."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from fl_utils.learning.client_files import write_client_files
from fl_utils.learning.errors import CacheError

PARTS = [np.array([0, 3, 5]), np.array([1]), np.array([2, 4])]


def data():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (6, 5, 4, 2), np.uint8), np.array([2, 0, 1, 1, 0, 300])


def test_what_is_read_in_the_graph_is_what_was_written(tmp_path):
    from fl_utils.learning.local import read_client_files

    images, labels = data()
    for prefix, part in zip(write_client_files(tmp_path / "clients", images, labels, PARTS), PARTS, strict=True):
        read_images, read_labels = read_client_files(prefix, (5, 4, 2))
        assert np.array_equal(read_images, images[part]) and np.array_equal(read_labels, labels[part])
        assert read_labels.dtype == "int32" and read_images.dtype == "uint8"


def test_paths_are_absolute(tmp_path, monkeypatch):
    """The worker has a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    assert all(os.path.isabs(prefix) for prefix in write_client_files(Path("clients"), *data(), PARTS))


def test_written_once(tmp_path):
    first = write_client_files(tmp_path, *data(), PARTS)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert write_client_files(tmp_path, *data(), PARTS) == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before and len(before) == 6


def test_other_data_other_name(tmp_path):
    """Pixels, labels, order and shape all tell two clients apart."""
    images, labels = data()
    variants = [
        (images, labels, PARTS[:1]),
        (255 - images, labels, PARTS[:1]),
        (images, labels[::-1], PARTS[:1]),
        (images, labels, [PARTS[0][::-1]]),
        (images.reshape(6, 4, 5, 2), labels, PARTS[:1]),
    ]
    assert len({write_client_files(tmp_path, *variant)[0] for variant in variants}) == len(variants)


def test_cut_file_is_written_again(tmp_path):
    images, labels = data()
    prefix = write_client_files(tmp_path, images, labels, PARTS[:1])[0]
    whole = Path(prefix + ".images").read_bytes()
    Path(prefix + ".images").write_bytes(whole[:-1])
    write_client_files(tmp_path, images, labels, PARTS[:1])
    assert Path(prefix + ".images").read_bytes() == whole


def test_hospital_without_examples(tmp_path):
    with pytest.raises(ValueError, match="Hospital 1 has no training examples; use fewer hospitals or more images"):
        write_client_files(tmp_path, *data(), [PARTS[0], np.array([], int)])


@pytest.mark.parametrize("images", [np.zeros((6, 5, 4, 2), np.float32), np.zeros((6, 5, 4), np.uint8)])
def test_images_of_another_kind(tmp_path, images):
    with pytest.raises(ValueError, match="expected uint8"):
        write_client_files(tmp_path, images, data()[1], PARTS)
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    real = os.replace

    def full(source, target):
        if str(target).endswith(".labels"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CacheError, match="No space left on device.*FL_UTILS_CACHE"):
        write_client_files(tmp_path, *data(), PARTS)
    assert [path.suffix for path in tmp_path.iterdir()] == [".images"]  # whole, and found again by the next call
