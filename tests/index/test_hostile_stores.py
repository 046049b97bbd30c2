"""Stores that lie, though their checksums are right: refused before anything is decoded, run or drawn."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct

import numpy as np
import pytest
import torch
import zarr
from forge import mend_checksums
from forged_uses import a_curve
from numcodecs.zstd import Zstd

import patchindex as pi
from patchindex.errors import StoreError
from patchindex.index.faiss_file import head_bytes, problem_of_head
from patchindex.store.checksums import read_checksummed, write_checksummed, write_manifest

SCALE = "scales/k003"
FAISS = f"{SCALE}/faiss/c/0"


@pytest.fixture(scope="module")
def honest(real_images, tmp_path_factory):
    images, labels = real_images(24, 10)
    path = tmp_path_factory.mktemp("honest") / "s.zarr"
    return pi.build_index(images, path, [3], labels % 3, machine="bbELS", locality=[3, 3], lists=30).path


@pytest.fixture
def store(honest, tmp_path):
    return shutil.copytree(honest, tmp_path / "s.zarr")


def use(path):
    machine = pi.ScoreMachine(path, estimator="topk", probes=1000)
    machine.posterior_mean(torch.zeros(1, 1, 10, 10), 0.5)


def refused(path, words):
    """Use and verify a store; both find the same, and it is another checksum only where the words say so."""
    with pytest.raises(StoreError, match=words) as caught:
        use(path)
    problems = " ".join(f"{where}: {what}" for where, what in pi.verify(path).problems)
    assert re.search(words, problems)
    assert ("checksum mismatch" in str(caught.value)) == ("checksum mismatch" in words)


def change(store, name, function):
    """Write an array after a function has changed it."""
    folder, _, array = name.rpartition("/")
    group = zarr.open_group(store / folder, mode="r+")
    new = function(np.asarray(group[array][:]))
    group.create_array(array, data=new, overwrite=True)
    mend_checksums(store)


def entry(at, value):
    def function(array):
        array.reshape(-1)[at] = value
        return array

    return function


@pytest.mark.parametrize(
    ("name", "function", "words"),
    [
        ("list_counts", entry(3, 2**40), "list_counts: has values outside"),
        ("list_counts", entry(3, -1), "list_counts: has values outside"),
        ("list_counts", lambda a: np.roll(a, 1, 1), "list_counts: does not count each of"),
        ("list_counts", lambda a: a[:, :-1], r"list_counts: is an array of int64 \[3, "),
        ("list_counts", lambda a: a[::-1].copy(), "list_counts: does not count each of"),
        ("list_bounds", entry(-1, 2**40), "list_bounds: does not ascend from 0"),
        ("list_bounds", entry(1, 0), "list_bounds: does not ascend from 0"),
        ("list_bounds", lambda a: a.astype(np.int32), "has a data_type that no store has"),
        ("cell_bounds", entry(-1, 2**40), "cell_bounds: does not ascend from 0"),
        ("cell_bounds", lambda a: np.append(a, a[-1] + 1), r"cells: is an array of float32 \[9, 8\]"),
        ("pca_components", lambda a: a[:-1], "pca_components: is an array of"),
        ("pca_components", entry(0, np.nan), "pca_components: has values outside"),
        ("pca_components", entry(0, 1e30), "pca_components: has values outside"),
        ("pca_mean", entry(0, np.inf), "pca_mean: has values outside"),
        ("centroids", entry(5, np.nan), "centroids: has values outside"),
        ("cells", entry(0, -1e30), "cells: has values outside"),
        ("code_ranges", entry(0, np.nan), "code_ranges: has values outside"),
        ("code_ranges", entry(-1, -1.0), "code_ranges: has values outside"),
        ("list_means", entry(0, np.nan), "list_means: has values outside"),
        ("list_variances", entry(0, -1.0), "list_variances: has values outside"),
        ("list_checksums", lambda a: a[:-1], "list_checksums: is an array of"),
    ],
)
def test_an_array_of_a_scale_that_contradicts_the_others_is_refused(store, name, function, words):
    change(store, f"{SCALE}/{name}", function)
    refused(store, words)


@pytest.mark.parametrize(
    ("name", "function", "words"),
    [
        ("labels", entry(0, 7), "labels: has other labels"),
        ("labels", lambda a: a[::-1].copy(), "labels: has other labels"),
        ("labels", lambda a: a[:-1], "labels: is an array of"),
        ("source_ids", entry(0, 24), "source_ids: has values outside"),
        ("source_ids", entry(0, 1), "source_ids: has an image twice"),
        ("image_checksums", lambda a: np.append(a, a), "image_checksums: is an array of"),
    ],
)
def test_columns_of_the_images_that_contradict_each_other_are_refused(store, name, function, words):
    change(store, name, function)
    refused(store, words)


def set_attribute(store, part, way, value):
    file = store / part / "zarr.json"
    found = json.loads(file.read_text())
    holder = found["attributes"]
    for name in way[:-1]:
        holder = holder[name]
    holder[way[-1]] = value
    file.write_text(json.dumps(found))
    mend_checksums(store)


SETTINGS = ["patchindex", "settings"]
APPENDED = {"images": 1, "source": "x"}
PREPARED = {"crop": None, "resize": None, "grayscale": False, "labels": None}


@pytest.mark.parametrize(
    ("part", "way", "value", "name"),
    [
        (SCALE, ["lists"], 10**12, "lists"),
        (SCALE, ["pca_dims"], 10**9, "pca_dims"),
        (SCALE, ["patches"], 7, "patches"),
        (SCALE, ["position_classes"], 1, "position_classes"),
        (SCALE, ["pca_energy"], "1", "pca_energy"),
        (SCALE, ["seconds"], {"train": "\x1b[2J"}, "seconds"),
        (SCALE, ["drift"], [{"images": 1}], "drift"),
        ("", ["patchindex", "machine"], "LS", "scales"),  # LS has none
        ("", ["patchindex", "train_windows"], "wrapped", "train_windows"),
        ("", ["patchindex", "label_names"], ["a"], "label_names"),
        ("", ["patchindex", "locality"], {"name": "x", "pairs": [[2, 3]]}, "locality"),
        ("", ["patchindex", "locality"], 3, "locality"),
        ("", ["patchindex", "scales"], [4.5], "scales"),
        ("", SETTINGS, {"appended": 1}, "appended"),
        ("", SETTINGS, {"appended": [APPENDED | {"duplicates": {"store": -1, "new": 0}}]}, "appended"),
        ("", SETTINGS, {"prepared": PREPARED | {"labels": "/etc/passwd"}}, "prepared"),
        ("", SETTINGS, {"prepared": PREPARED | {"resize": [10**9, 1]}}, "prepared"),
        ("", ["patchindex", "skipped"], 1e300, "skipped"),
    ],
)
def test_attributes_that_cannot_be_are_refused(store, part, way, value, name):
    set_attribute(store, part, way, value)
    refused(store, f"its attribute '{name}' cannot be")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("shape", [24, 10, 10, 3], r"images: is an array of .*, not of uint8 \[24, 10, 10, 3\]"),
        (
            "shape",
            [10**12, 10, 10, 1],
            r"images: is an array of .*, not of uint8 \[1000000000000, 10",
        ),
        ("labels", [0, 1, 3], "labels: has other labels than the attributes of the store"),
    ],
)
def test_attributes_that_contradict_an_array_are_refused(store, name, value, words):
    set_attribute(store, "", ["patchindex", name], value)
    refused(store, words)


@pytest.mark.parametrize(
    ("at", "form", "value", "words"),
    [
        (0, "4s", b"IwFl", "type"),
        (4, "<i", 99, "dimensions"),
        (8, "<q", 1, "number of entries"),
        (32, "<b", 0, "state of training"),
        (33, "<i", 0, "metric"),
        (37, "<Q", 2**40, "number of lists"),
        (110, "<f", 3.0, "centroids"),
        (-32, "4s", b"ilod", "type of the lists"),  # lists in another file, whose name follows
        (-8, "4s", b"spar", "form of the list sizes"),
        (-1, "<Q", 2**40, "list sizes"),
    ],
)
def test_a_faiss_head_of_another_index_never_reaches_faiss(store, at, form, value, words, monkeypatch):
    scale = pi.open_index(store).scale(3)
    lists, dims = scale.lists.centroids.shape
    data = bytearray((store / FAISS).read_bytes())
    end = head_bytes(lists, dims)
    places = {-32: end - 8 * lists - 32, -8: end - 8 * lists - 12, -1: end - 8}
    struct.pack_into(form, data, places.get(at, at), value)
    (store / FAISS).write_bytes(data)
    mend_checksums(store)
    monkeypatch.setattr("faiss.read_index", lambda *_: pytest.fail("FAISS reads the file"))
    refused(store, f"its header is of another index: {words}")


def test_the_head_that_faiss_writes_is_the_head_that_is_wanted(honest):
    scale = pi.open_index(honest).scale(3)
    lists, dims = scale.lists.centroids.shape
    head = (honest / FAISS).read_bytes()[: head_bytes(lists, dims)]
    wanted = scale.lists.centroids, scale.model.ranges, scale.list_sizes()
    assert problem_of_head(head, *wanted) is None
    assert problem_of_head(head + b"0", *wanted) == "length"
    for at in range(len(head)):
        assert problem_of_head(head[:at] + bytes([head[at] ^ 1]) + head[at + 1 :], *wanted) is not None


@pytest.mark.parametrize("value", [-1, 2**62, -(2**62), 0, "equal", "swapped", "another label"])
def test_patch_ids_are_checked_before_a_list_is_used(store, value):
    scale = pi.open_index(store).scale(3)
    sizes, dims = scale.list_sizes(), scale.pca.dims
    c = int(sizes.argmax())
    data = bytearray((store / FAISS).read_bytes())
    at = head_bytes(len(sizes), dims) + int(sizes[:c].sum()) * (dims + 8) + int(sizes[c]) * dims
    first, second = struct.unpack_from("<qq", data, at + 8)
    per_image = scale.geometry.patches_per_image
    new = {
        "equal": (first, first),
        "swapped": (second, first),
        "another label": (first, second + 8 * per_image),
    }
    struct.pack_into("<qq", data, at + 8, *new.get(value, (first, value)))
    (store / FAISS).write_bytes(data)
    mend_checksums(store)
    refused(store, f"list {c} has wrong patch ids")
    with pytest.raises(StoreError, match="has wrong patch ids"):
        list(pi.open_index(store).scale(3).members())


def test_code_in_a_store_is_not_run(store, tmp_path):
    """Format 2 has filters that unpickle, and format 3 has codecs by name."""
    shutil.rmtree(store / "labels")
    (store / "labels").mkdir()
    metadata = {"zarr_format": 2, "shape": [24], "chunks": [24], "dtype": "|O", "compressor": None}
    metadata |= {"fill_value": None, "order": "C", "filters": [{"id": "pickle"}]}
    (store / "labels/.zarray").write_text(json.dumps(metadata))
    (store / "labels/0").write_bytes(f"cos\nsystem\n(S'touch {tmp_path}/ran'\ntR.".encode())
    mend_checksums(store)
    refused(store, "labels/zarr.json: is missing")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("codecs", [{"name": "bytes"}, {"name": "numcodecs.pickle"}]),
        ("codecs", [{"name": "numcodecs.pickle"}, {"name": "bytes"}, {"name": "zstd"}]),
        ("codecs", [{"name": "sharding_indexed", "configuration": {}}]),
        ("codecs", [{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "zstd"}]),
        ("data_type", "object"),
        ("data_type", {"name": "null_terminated_bytes"}),
        ("node_type", "group"),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [10**9]}}),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [0]}}),
        ("chunk_key_encoding", {"name": "v2", "configuration": {"separator": "."}}),
        ("storage_transformers", [{"name": "x"}]),
        ("fill_value", 5),
        ("shape", [-24]),
    ],
)
def test_metadata_that_this_package_does_not_write_are_refused(store, field, value):
    set_field(store, field, value)
    refused(store, f"labels/zarr.json: has a {field} that no store has")


def test_metadata_of_another_format_or_length_are_refused(store):
    set_field(store, "shape", [10**12])
    refused(store, r"labels: is an array of int64 \[1000000000000\], not of int64 \[24\]")
    set_field(store, "zarr_format", 2)
    refused(store, "labels/zarr.json: is not zarr format 3")


def set_field(store, field, value):
    file = store / "labels/zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    mend_checksums(store)


def test_bombs_and_other_frames_are_not_decompressed(store, monkeypatch):
    chunk = store / "labels/c/0"
    whole = chunk.read_bytes()
    for content, words in (
        (Zstd().encode(bytes(1 << 24)), "cannot be decompressed"),
        (whole[:4] + b"\xe0" + struct.pack("<Q", 2**40) + whole[-4:], "cannot be decompressed"),
        (whole[:4] + b"\x00" + whole[6:], "cannot be decompressed"),  # states no size
        (bytes(10_000), "holds more than"),
        (b"", "cannot be decompressed"),
        (whole[:-1], "cannot be decompressed"),
    ):
        chunk.write_bytes(content)
        mend_checksums(store)
        refused(store, words)


IRREGULAR = ["link", "fifo", "zero", "folder", "linked folder"]


@pytest.mark.parametrize("kind", IRREGULAR)
@pytest.mark.parametrize("name", ["images/c/0/0/0/0", "labels/zarr.json", f"{SCALE}/centroids/c/0/0", FAISS])
def test_only_regular_files_inside_the_store_are_opened(store, tmp_path, name, kind):
    path = store / name
    path = path.parent if kind == "linked folder" else path
    path.rename(tmp_path / "aside")
    if kind in ("link", "linked folder"):
        path.symlink_to(tmp_path / "aside")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    words = {"fifo": "is a FIFO", "folder": "is a folder", "linked folder": "which is a link"}
    refused(store, words.get(kind, "is a link, not a regular file"))


@pytest.mark.parametrize("name", ["manifest.json", "scales.json", "zarr.json", f"{SCALE}/zarr.json"])
def test_a_fifo_in_place_of_a_json_file_blocks_nothing(store, name):
    (store / name).unlink()
    os.mkfifo(store / name)
    with pytest.raises((StoreError, pi.errors.InputError)):
        use(store)


def test_a_store_is_used_through_a_link_but_its_scales_are_not(store, tmp_path):
    (tmp_path / "link.zarr").symlink_to(store)
    use(tmp_path / "link.zarr")
    assert pi.verify(tmp_path / "link.zarr").whole
    (store / SCALE).rename(tmp_path / "k003")
    (store / SCALE).symlink_to(tmp_path / "k003")
    with pytest.raises(StoreError, match="is in the folder scales/k003, which is a link"):
        use(store)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\0b", "\ud800", "x" * 300, "a\\b", "c:x"])
def test_a_manifest_names_files_of_the_store_only(store, name):
    entries = read_checksummed(store / "manifest.json")
    write_checksummed(store / "manifest.json", entries | {name: [1, "0"]})
    refused(store, "has an invalid file name")


@pytest.mark.parametrize("listed", [[0.5], [1e30], [[3]], {}, "3", [2000], [-3], [None]])
def test_a_list_of_scales_that_is_none_is_refused(store, listed):
    write_checksummed(store / "scales.json", listed)
    refused(store, "scales.json: is no list of scales")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("near", [], "its 'near' is missing or damaged"),
        ("exact", "1", "its 'exact' is missing or damaged"),
        ("least", None, "its 'least' is missing or damaged"),
        ("beta", 0, "its 'near' is missing or damaged"),
        ("probes", 10**12, "its 'near' is missing or damaged"),
        ("candidates", 2.5, "its 'near' is missing or damaged"),
        ("missed", [0.0], "its 'near' is missing or damaged"),
        ("more", 1, "has an unknown field 'more'"),
    ],
)
def test_an_operating_curve_that_cannot_be_is_refused(store, field, value, words):
    curve = a_curve()
    curve[field] = value
    if field in ("beta", "probes", "candidates", "missed"):
        curve = a_curve()
        curve["near"][0][field] = value
    pi.open_index(store).scale(3).save_curve(curve)
    refused(store, f"operating_curve.json: {words}")


def test_checksums_of_images_are_compared_by_verify(store):
    group = zarr.open_group(store, mode="r+")
    group.create_array("image_checksums", data=np.array([1], np.uint32), overwrite=True)
    write_manifest(store)
    refused(store, r"images 0 to 23 are damaged \(checksum mismatch\)")


@pytest.mark.parametrize("name", [".DS_Store", "._x", "Thumbs.db", "desktop.ini"])
def test_files_of_the_operating_system_are_no_damage(store, name):
    for folder in ("", "images", "scales", SCALE):
        (store / folder / name).write_bytes(b"x")
    assert pi.verify(store).whole
    use(store)
