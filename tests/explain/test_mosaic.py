"""The mosaic of a sample: sources, segments, and the nearest training patches by exact search."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError
from patchindex.explain.mosaic import segments

SIZE = (12, 12)


@pytest.fixture(scope="module")
def images(real_images):
    return real_images(30, SIZE, channels=3)[0]


def of_two(images):
    """An image whose left half is image 3, and whose right half is image 8 moved up by two pixels."""
    v = images / np.float32(127.5) - 1
    joined = v[3].copy()
    joined[:, 6:] = np.roll(v[8], -2, 0)[:, 6:]
    return torch.from_numpy(joined.transpose(2, 0, 1)[None])


def test_pieces_of_two_images_are_segments(images):
    m = pi.ScoreMachine(images, machine="ELS", locality=3)
    found = pi.explain.mosaic(m, of_two(images), 0.02)
    inside = found.image[1:-3, 1:-1]  # windows that wrap around are of no image
    assert (inside[:, :4] == 3).all()
    assert (inside[:, 6:] == 8).all()
    assert (found.y[3, 8], found.x[3, 8]) == (5, 8)
    assert len(np.unique(found.segment[1:9, 1:5])) == 1
    assert len(np.unique(found.segment[1:9, 7:11])) == 1
    numbers = found.summary()
    assert {found.segment[2, 2], found.segment[2, 8]} == {0, 1}
    assert numbers["largest_segment"] >= 40
    assert numbers["method"] == "exact"
    assert numbers["segments"] == found.segment.max() + 1


@pytest.mark.parametrize("label", [None, 1])
@pytest.mark.parametrize("name", brute.MACHINES)
def test_nearest_patches_agree_with_a_brute_force(images, name, label):
    labels = np.arange(30) % 2
    m = pi.ScoreMachine(images, labels, **brute.settings_of(name))
    x = torch.from_numpy(brute.noisy(images[:1], 0.2, seed=3))
    found = pi.explain.mosaic(m, x, 0.1, k=5, label=label)
    chosen = np.flatnonzero(labels == label) if label is not None else np.arange(30)
    np.testing.assert_allclose(found.sample, m.posterior_mean(x, 0.1, k=5, label=label).mean[0])
    for y, x_ in [(0, 0), (5, 7), (11, 3)]:
        # With hardly any noise the softmax is on the nearest patch.
        sample = found.sample.numpy() * np.sqrt(1 - 1e-6)
        truth = brute.weights(images[chosen], sample, 1e-6, name, (y, x_), k=5)
        best = max(truth, key=truth.get)
        assert (found.nearest_image[y, x_], found.nearest_y[y, x_], found.nearest_x[y, x_]) == (
            chosen[best[0]],
            *best[1:],
        )
        centre = images[chosen[best[0]], best[1], best[2]] / 127.5 - 1
        off = np.abs(found.sample[:, y, x_].numpy() - centre).max()
        assert found.difference[y, x_] == pytest.approx(off, abs=1e-6)


@pytest.mark.parametrize("name", ["IS", "LS", "ELS-wrapped", "bbELS"])
def test_a_training_image_is_one_segment_and_its_own_mosaic(images, name):
    m = pi.ScoreMachine(images, locality=5, **brute.settings_of(name))
    x = m.training.source.floats(4)
    found = pi.explain.mosaic(m, x, 0.02, image=x)
    numbers = found.summary()
    assert (found.image == 4).all()
    assert (numbers["source_images"], numbers["segments"], numbers["largest_segment"]) == (1, 1, 144)
    assert numbers["mosaic_share"] == numbers["same_patch"] == numbers["single"] == 1
    assert numbers["effective_images"] == pytest.approx(1)
    np.testing.assert_allclose(found.nearest_distance, 0, atol=1e-6)
    np.testing.assert_allclose(found.centres, x[0], atol=1e-6)


def test_images_of_a_store_are_named_by_their_number_in_the_source(labelled, tmp_path):
    images, labels = labelled
    store = pi.build_index(images, tmp_path / "s.zarr", labels=labels, scales=[3], machine="bbELS")
    x = torch.from_numpy(images[11:12].transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
    for name in ("bbELS", "LS"):
        m = pi.denoiser(name, store, locality=5, estimator="exact")
        found = pi.explain.mosaic(m, x, 0.02)
        assert found.image[7, 7] == found.nearest_image[7, 7] == 11
        assert found.label[7, 7] == labels[11]


def test_segments_are_connected_along_edges_and_ordered_by_size():
    key = np.array([[1, 1, 2], [2, 1, 2], [1, 2, 2]])
    assert segments(key[None]).tolist() == [[1, 1, 0], [2, 1, 0], [3, 0, 0]]


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf"), "0.1", None])
def test_a_tolerance_is_a_number_from_0_on(images, tolerance):
    m = pi.ScoreMachine(images, machine="LS", locality=3)
    x = m.training.source.floats(4)
    assert pi.explain.mosaic(m, x, 0.02, tolerance=0).settings["tolerance"] == 0
    steps = pi.explain.redraw(m, x, steps=3)
    with pytest.raises(InputError, match="tolerance: must be at least 0, got"):
        pi.explain.mosaic(m, x, 0.02, tolerance=tolerance)
    with pytest.raises(InputError, match="tolerance: must be at least 0, got"):
        pi.explain.explain_sample(m, steps, tolerance=tolerance)


def test_images_have_one_shape_in_all_functions_that_explain(images):
    m = pi.ScoreMachine(images, machine="LS", locality=3)
    one, two, flat = torch.zeros(1, 3, *SIZE), torch.zeros(2, 3, *SIZE), torch.zeros(3, *SIZE)
    calls = {
        "x": lambda x: pi.explain.mosaic(m, x, 0.1),
        "image": lambda x: pi.explain.mosaic(m, one, 0.1, image=x),
        "x_T": lambda x: pi.explain.redraw(m, x, steps=3),
        "expected": lambda x: pi.explain.redraw(m, one, steps=3, expected=x),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=rf"{name}: has 2 images; give one, such as {name}\[:1\]"):
            call(two)
        with pytest.raises(InputError, match=rf"{name}: must be a tensor of shape .*; give {name}\[None\]"):
            call(flat)
    with pytest.raises(InputError, match=r"x: must be a tensor of shape .*; give x\[None\]"):
        m.explain(flat, 0.1)
    for call in (
        lambda: pi.explain.mosaic(m, one, 0.1, number=-1),
        lambda: pi.explain.redraw(m, one, number=-1),
    ):
        with pytest.raises(InputError, match="number: must be at least 0, got -1"):
            call()
