"""Training images on a device: the CPU stands for a device with some free memory."""

from __future__ import annotations

import gc

import fake_gpu
import numpy as np
import pytest
import torch

from patchindex.devices import ACCELERATORS
from patchindex.images import on_device
from patchindex.images.by_label import TrainingImages
from patchindex.images.on_device import blocks_on, resident

CPU = torch.device("cpu")


def stand_in(monkeypatch, free):
    monkeypatch.setitem(ACCELERATORS, "cpu", fake_gpu.Fake([free], pins_memory=False))


@pytest.fixture(params=["resident", "streamed"])
def where(request, monkeypatch):
    """Both ways to a device: images that fit into its free memory, and images that do not."""
    stand_in(monkeypatch, 1 << 30 if request.param == "resident" else 0)
    return request.param


@pytest.fixture
def images(real_images):
    return real_images(40, 8, channels=3, classes=(1, 4, 9))


def read(training, lo, hi, most, **settings):
    with blocks_on(training, CPU, lo, hi, most, **settings) as blocks:
        found = [block.clone() for block in blocks]
    assert all(block.dtype == torch.uint8 and 0 < len(block) <= most for block in found)
    return torch.cat(found).numpy()


@pytest.mark.parametrize(("lo", "hi", "most"), [(0, 40, 7), (0, 40, 1000), (5, 17, 4), (39, 40, 1)])
def test_blocks_are_the_images_of_a_range(images, where, lo, hi, most):
    np.testing.assert_array_equal(read(TrainingImages(images[0]), lo, hi, most), images[0][lo:hi])


def test_a_range_of_labelled_images_comes_in_label_order(images, where):
    training = TrainingImages(*images)
    lo, hi = training.range_of(4)
    np.testing.assert_array_equal(read(training, lo, hi, 3), images[0][images[1] == 4])
    everything = read(training, 0, 40, 16)
    assert sorted(map(bytes, everything)) == sorted(map(bytes, images[0]))


@pytest.mark.parametrize("labels", [True, False])
def test_a_selection_comes_in_its_order(images, where, labels):
    training = TrainingImages(images[0], images[1] if labels else None)
    order = np.random.default_rng(0).permutation(40)
    expected = training.read_some(order)
    chosen = training.select(order)
    np.testing.assert_array_equal(read(chosen, 0, 40, 6), expected)
    np.testing.assert_array_equal(read(chosen, 11, 29, 6), expected[11:29])
    np.testing.assert_array_equal(chosen.source_ids, training.source_ids[order])


def test_selections_of_selections_are_taken_from_the_same_copy(images, where):
    training = TrainingImages(*images)
    order = np.random.default_rng(0).permutation(40)
    everything = training.read(0, 40)
    for first, second in (
        (order, slice(3, 20)),
        (slice(3, 20), order[order < 17]),
        (slice(5, 30), slice(2, 9)),
    ):
        twice = training.select(first).select(second)
        expected = everything[first][second]
        np.testing.assert_array_equal(read(twice, 0, len(expected), 4), expected)
        np.testing.assert_array_equal(twice.read(0, len(expected)), expected)
    assert len(on_device._copies[training]) == (where == "resident")
    assert twice not in on_device._copies


def test_blocks_end_at_multiples_and_have_about_the_bytes_asked_for(images, where):
    training = TrainingImages(images[0])
    with blocks_on(training, CPU, 0, 40, 100, multiple=4, block_bytes=10 * 8 * 8 * 3) as blocks:
        assert [len(block) for block in blocks] == [8] * 5


def test_a_copy_is_made_once_and_goes_with_its_images(images, monkeypatch):
    stand_in(monkeypatch, 1 << 30)
    training = TrainingImages(*images)
    copy = resident(training, CPU)
    np.testing.assert_array_equal(copy, training.read(0, 40))
    stand_in(monkeypatch, 0)
    assert resident(training, CPU) is copy
    before = len(on_device._copies)
    del training
    gc.collect()
    assert len(on_device._copies) < before


def test_images_that_need_more_than_their_share_stay_where_they_are(images, monkeypatch):
    training = TrainingImages(images[0])
    stand_in(monkeypatch, 2 * training.source_bytes - 1)
    assert resident(training, CPU) is None
    assert resident(training, CPU, share=1.0) is not None
