"""Opening refuses stores that are damaged, missing or of another format, and says why."""

from __future__ import annotations

import gc
import html
import os
import weakref

import numpy as np
import pytest
import torch
import zarr

import patchindex as pi
from patchindex.errors import InputError, SourceNotFoundError, StoreError
from patchindex.store.raw import raw_path


@pytest.fixture
def own_store(labelled, tmp_path):
    return pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3], labels=labelled[1]).path


def shorten(file):
    file.write_bytes(file.read_bytes()[:-10])


def clear_header(file):
    file.write_bytes(bytes(100) + file.read_bytes()[100:])


def no_json(file):
    file.write_text("{")


def remove(file):
    file.unlink()


def another_format(file):
    group = zarr.open_group(file.parent, mode="a")
    group.attrs["patchindex"] = {**group.attrs["patchindex"], "format": 99}


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("images/c/0/0/0/0", shorten, "bytes, not"),
        ("labels/zarr.json", remove, "labels/zarr.json: is missing"),
        ("source_ids/zarr.json", remove, "source_ids/zarr.json: is missing"),
        ("zarr.json", no_json, r"zarr\.json: cannot be read"),
        ("zarr.json", another_format, "has format 99; this version reads"),
    ],
)
def test_damaged_store_is_refused_at_opening(own_store, file, change, words):
    change(own_store / file)
    with pytest.raises(StoreError, match=words):
        pi.open_index(own_store)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("faiss/c/0", shorten, "bytes, not"),
        ("faiss/c/0", clear_header, "header is damaged"),
        ("centroids/zarr.json", remove, "centroids"),
    ],
)
def test_damaged_scale_is_refused_when_it_is_used(own_store, file, change, words):
    change(own_store / "scales/k003" / file)
    machine = pi.ScoreMachine(pi.open_index(own_store), estimator="topk")
    with pytest.raises(StoreError, match=words):
        machine.posterior_mean(torch.zeros(1, 1, 14, 14), 0.5, k=3)


@pytest.mark.parametrize("size", [(1, 10), (3, 10), (10, 1), (10, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_store_of_images_of_any_height_opens(tmp_path, size, channels):
    """A height of 1 or 3 looks like channels, which a store has last."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, *size, channels), np.uint8)
    source = pi.open_images(pixels, axes="NHWC", labels=np.arange(8) % 2)
    index = pi.build_index(source, tmp_path / "s.zarr", machine="LS")
    opened = pi.open_index(index.path).training
    np.testing.assert_array_equal(opened.in_source_order()[:], pixels)
    assert pi.verify(index.path).whole


def test_missing_path_is_refused(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no such store"):
        pi.open_index(tmp_path / "none.zarr")


@pytest.mark.parametrize(
    "use",
    [
        pi.open_index,
        pi.verify,
        pi.tune,
        lambda path: pi.add_scales(path, [3]),
        lambda path: pi.append(path, np.zeros((2, 8, 8), np.uint8)),
        lambda path: pi.ScoreMachine(path, locality=3),
        lambda path: pi.build_index(np.zeros((2, 8, 8), np.uint8), path, machine="IS"),
    ],
    ids=["open_index", "verify", "tune", "add_scales", "append", "ScoreMachine", "build_index"],
)
def test_a_name_that_is_too_long_is_refused_in_one_line(use, tmp_path):
    with pytest.raises(InputError, match=r"xxx: cannot be accessed \(File name too long\); check the path"):
        use(tmp_path / ("x" * 300))


def test_missing_scale_is_refused_with_what_python_can_do(own_store):
    remedy = r"index it with add_scales, .* LocalitySchedule\.nearest, or .*estimator='exact'$"
    with pytest.raises(InputError, match=f"for 3; {remedy}"):
        pi.open_index(own_store).scale(5)
    with pytest.raises(InputError, match=r"k: must be a whole number, got 3\.0"):
        pi.open_index(own_store).scale(3.0)


@pytest.mark.parametrize("part", ["images", "faiss"])
def test_a_mapped_file_that_becomes_shorter_is_refused_at_the_next_step(labelled, tmp_path, part):
    store = pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3], locality=[3, 3])
    machines = [pi.ScoreMachine(store, estimator=name) for name in pi.ESTIMATORS]
    x = torch.ones(1, 1, 14, 14)
    for machine in machines:
        machine.posterior_mean(x, 0.5)
    file = (
        raw_path(store.path, "images", 4) if part == "images" else raw_path(store.scale(3).path, "faiss", 1)
    )
    os.truncate(file, 4096)
    for machine in machines:
        with pytest.raises(StoreError, match=r"became shorter while it was in use; restore it"):
            machine.posterior_mean(x, 0.5)
    with pytest.raises(StoreError, match="became shorter"):
        store.check_images(0, 1)


def test_a_notebook_shows_the_scales_of_a_store(store):
    shown = store._repr_html_()
    assert html.escape(repr(store)) in shown
    for k in store.scales:
        assert f"<tr><td>{k}</td><td>{store.scale(k).attributes['patches']:,}</td><td>" in shown


@pytest.mark.parametrize("estimator", ["exact", "auto", "topk"])
def test_a_store_that_nobody_uses_is_closed_at_once(own_store, estimator):
    """Its maps would keep the disk space of a store that was removed, until Python looks for cycles."""
    index = pi.open_index(own_store)
    m = pi.ScoreMachine(index, estimator=estimator)
    m.posterior_mean(torch.zeros(1, 1, 14, 14), 0.5, k=3)
    index.scale(3)
    there = weakref.ref(index), weakref.ref(index.scale(3))
    gc.disable()
    try:
        del m, index
        assert [one() for one in there] == [None, None]
    finally:
        gc.enable()
