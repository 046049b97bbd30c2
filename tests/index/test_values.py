"""Names of images that lie, though their checksums are right: refused when the store is opened."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import patchindex as pi
from patchindex.errors import StoreError
from patchindex.images.file_names import LONGEST_NAME, FileNames
from patchindex.store.checksums import write_manifest
from patchindex.store.raw import write_raw

NAMES = ["a.png", "", "\x1b]0;x\x07ü.png", "d.png"]


@pytest.fixture(scope="module")
def honest(real_images, tmp_path_factory):
    source = pi.open_images(real_images(4, 8)[0])
    source.file_names = FileNames.of(NAMES)
    return pi.build_index(source, tmp_path_factory.mktemp("honest") / "s.zarr", scales=[3]).path


@pytest.fixture
def store(honest, tmp_path):
    return shutil.copytree(honest, tmp_path / "s.zarr")


def rewrite(store, name, values):
    shutil.rmtree(store / name)
    with write_raw(store, name, values.dtype.name) as out:
        out.write(values)
    write_manifest(store)


def refused(store, words):
    with pytest.raises(StoreError, match=words):
        pi.open_index(store)
    assert any("image_name" in f"{where}: {what}" for where, what in pi.verify(store).problems)


def test_names_are_read_as_they_were_written(store):
    assert pi.open_index(store).image_names([2, 1, 0, 3]) == [NAMES[i] for i in (2, 1, 0, 3)]


@pytest.mark.parametrize(
    "bounds",
    [
        [1, 5, 5, 17, 22],
        [0, 5, 5, 17, 21],
        [0, 5, 5, 17, 2**40],
        [0, 5, 4, 17, 22],
        [0, -5, 5, 17, 22],
        [0, 2**62, 5, 17, 22],
    ],
)
def test_bounds_of_names_that_do_not_ascend_to_their_bytes_are_refused(store, bounds):
    rewrite(store, "image_name_bounds", np.array(bounds))
    refused(store, "image_name_bounds: does not ascend from 0 to 22")


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("image_name_bounds", np.array([0, 5, 5, 22]), r"image_name_bounds: is an array of int64 \[4\]"),
        ("image_name_bounds", np.zeros(5, np.float32), "image_name_bounds: is an array of float32"),
        ("image_names", np.zeros(22, np.uint32), "image_names: is an array of uint32"),
        ("image_names", np.full(22, 0xFF, np.uint8), "image_names: has a name that is no UTF-8"),
        (
            "image_names",
            np.zeros(4 * LONGEST_NAME + 1, np.uint8),
            "image_names: has 16,385 bytes for 4 names",
        ),
    ],
)
def test_names_that_no_build_writes_are_refused(store, name, values, words):
    rewrite(store, name, values)
    refused(store, words)


def test_a_name_that_ends_inside_a_character_is_refused(store):
    at = pi.open_index(store).training.source.file_names.content.tolist().index(0xC3) + 1
    rewrite(store, "image_name_bounds", np.array([0, 5, 5, at, 22]))
    refused(store, "image_names: has a name that is no UTF-8")


def test_a_name_that_is_too_long_is_refused(store):
    rewrite(store, "image_names", np.full(2 * LONGEST_NAME, 97, np.uint8))
    rewrite(store, "image_name_bounds", np.array([0, 0, 0, 0, 2 * LONGEST_NAME]))
    refused(store, "image_name_bounds: has a name of more than 4,096 bytes")


@pytest.mark.parametrize("name", ["image_names", "image_name_bounds"])
def test_one_of_the_two_arrays_alone_is_refused(store, name):
    shutil.rmtree(store / name)
    write_manifest(store)
    refused(store, name)


def test_names_that_the_metadata_only_announce_take_no_memory(store):
    file = store / "image_names" / "zarr.json"
    metadata = json.loads(file.read_text())
    metadata["shape"] = metadata["chunk_grid"]["configuration"]["chunk_shape"] = [4 * LONGEST_NAME]
    file.write_text(json.dumps(metadata))
    write_manifest(store)
    refused(store, "image_name_bounds: does not ascend")
