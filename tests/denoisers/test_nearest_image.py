"""NearestImage: the nearest training image, also where float32 cannot tell."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.images.by_label import TrainingImages
from patchindex.images.nearest import nearest_images


@pytest.fixture(scope="module")
def images(real_images):
    return real_images(120, (9, 8), channels=3, classes=(2, 5, 8))


def nearest(images, y):
    """Return the number of the nearest image, in float64; the first among equals."""
    v = images.transpose(0, 3, 1, 2) / 127.5 - 1
    return [int(((v - one) ** 2).sum((1, 2, 3)).argmin()) for one in y]


@pytest.mark.parametrize("t", [0.05, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("label", [None, 5])
def test_it_is_the_image_at_the_smallest_distance(images, real_images, t, label):
    pixels, labels = images
    chosen = pixels if label is None else pixels[labels == label]
    x = torch.from_numpy(brute.noisy(real_images(20, (9, 8), channels=3, skip=900)[0], t))
    expected = chosen[nearest(chosen, x.double().numpy() / np.sqrt(1 - brute.beta_of(t)))]
    found = pi.denoiser("nearest", pixels, labels).posterior_mean(x, t, label=label)
    np.testing.assert_allclose(found.mean.numpy(), expected.transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)
    assert found.patches_evaluated == 20 * 72 * len(chosen)


@pytest.mark.parametrize("memory", [1, 1 << 16, 1 << 28])
def test_distances_that_float32_cannot_tell_apart(images, memory):
    """The queries are far away, and beside the plane in the middle of two images."""
    pixels = images[0]
    v = pixels.transpose(0, 3, 1, 2) / 127.5 - 1
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, len(pixels), (30, 2))
    middle = (v[pairs[:, 0]] + v[pairs[:, 1]]) / 2
    along = v[pairs[:, 0]] - v[pairs[:, 1]]
    away = rng.standard_normal(middle.shape)
    away -= (
        along
        * ((away * along).sum((1, 2, 3)) / np.maximum((along**2).sum((1, 2, 3)), 1))[:, None, None, None]
    )
    for y in (middle + 1e-7 * along, middle - 1e-7 * along, middle + 1000 * away + 1e-6 * along):
        found = nearest_images(torch.from_numpy(y), TrainingImages(pixels), memory=memory)
        assert found.image[:, 0].tolist() == nearest(pixels, y)


@pytest.mark.parametrize("memory", [1, 1 << 28])
def test_the_first_image_of_the_source_is_taken_among_equals(images, tmp_path, memory):
    """Labels sort the images otherwise, and a store keeps them sorted."""
    pixels, labels = np.tile(images[0][:6], (5, 1, 1, 1)), np.arange(30) % 4
    y = torch.from_numpy(pixels[:6].transpose(0, 3, 1, 2) / 127.5 - 1)
    store = pi.build_index(pixels, tmp_path / "s.zarr", labels=labels, machine="IS")
    for training in (TrainingImages(pixels), TrainingImages(pixels, labels), store.training):
        found = nearest_images(y, training, memory=memory)
        assert found.image[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
        assert found.distance[:, 0].tolist() == [0] * 6
    for training in (TrainingImages(pixels, labels), store.training):
        found = nearest_images(y, training, label=2, memory=memory)
        first = [next(i for i in range(30) if labels[i] == 2 and i % 6 == j % 6) for j in (0, 2, 4)]
        assert found.image[::2, 0].tolist() == first


def test_images_at_the_same_distance_from_the_query(tmp_path):
    """Black and white are equally far from grey; the first of the source is taken."""
    pixels = np.array([255, 0] * 20, np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    grey = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    assert nearest_images(grey, TrainingImages(pixels)).image.tolist() == [[0]]
    assert nearest_images(grey, TrainingImages(pixels, 1 - np.arange(40) % 2)).image.tolist() == [[0]]


def test_it_is_the_limit_of_the_ideal_score_machine(images, real_images):
    x = torch.from_numpy(brute.noisy(real_images(5, (9, 8), channels=3, skip=900)[0], 0.1))
    ideal = pi.denoiser("IS", images[0]).posterior_mean(x, 0.1)
    found = pi.denoiser("nearest", images[0]).posterior_mean(x, 0.1)
    alone = ideal.ess[:, 0, 0] < 1 + 1e-6
    assert alone.any()
    torch.testing.assert_close(found.mean[alone], ideal.mean[alone], rtol=0, atol=1e-5)
    assert (found.ess == 1).all()
    assert (found.stderr == 0).all()
    assert (found.captured_mass == 1).all()


def test_sampling_ends_at_training_images(images):
    drawn = pi.sample(pi.denoiser("nearest", images[0]), 4, 5).images
    v = torch.from_numpy(images[0].transpose(0, 3, 1, 2) / 127.5 - 1).float()
    assert ((drawn[:, None] - v).abs().amax((2, 3, 4)).amin(1) < 1e-4).all()
