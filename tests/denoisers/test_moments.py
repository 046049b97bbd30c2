"""Mean and covariance of whole images: exact, by label, in any amount of memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from patchindex.denoisers.moments import image_moments
from patchindex.errors import InputError
from patchindex.images.by_label import TrainingImages


@pytest.fixture(scope="module")
def images(real_images):
    return real_images(60, (9, 7), channels=3, classes=(2, 5))


@pytest.mark.parametrize("label", [None, 5])
@pytest.mark.parametrize("memory", [1, 1 << 16, 1 << 28])
def test_moments_agree_with_numpy(images, label, memory):
    pixels, labels = images
    chosen = pixels if label is None else pixels[labels == label]
    flat = (chosen.transpose(0, 3, 1, 2) / 127.5 - 1).reshape(len(chosen), -1)
    found = image_moments(TrainingImages(pixels, labels), label, memory=memory)
    # numpy rounds each number in [-1, 1] to float64.
    np.testing.assert_allclose(found.mean.numpy(), flat.mean(0), rtol=0, atol=1e-14)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(flat.T, bias=True), rtol=0, atol=1e-14)


def test_moments_do_not_depend_on_memory_or_order(images):
    pixels, labels = images
    expected = image_moments(TrainingImages(pixels))
    for found in (
        image_moments(TrainingImages(pixels, labels)),
        image_moments(TrainingImages(pixels), memory=1),
    ):
        assert torch.equal(found.mean, expected.mean)
        assert torch.equal(found.covariance, expected.covariance)
    assert torch.equal(expected.covariance, expected.covariance.T)


def test_the_largest_values_of_a_full_block_are_summed_exactly():
    """1 024 black images and one white image: the products of a block sum to 2^24."""
    pixels = np.zeros((1025, 2, 2, 1), np.uint8)
    pixels[-1] = 255
    found = image_moments(TrainingImages(pixels))
    share = 1 / 1025
    np.testing.assert_allclose(found.mean.numpy(), 2 * share - 1, rtol=0, atol=1e-15)
    np.testing.assert_allclose(found.covariance.numpy(), 4 * share * (1 - share), rtol=1e-13)


def test_constant_pixels_have_a_covariance_of_zero(images):
    pixels = images[0].copy()
    pixels[:, 3] = 77
    found = image_moments(TrainingImages(pixels)).covariance.reshape(3, 9, 7, -1)
    assert (found[:, 3] == 0).all()
    assert (found[:, 4] != 0).any()


def test_progress_and_an_unknown_label(images):
    calls = []
    training = TrainingImages(*images)
    image_moments(training, memory=1 << 16, progress=lambda *call: calls.append(call))
    assert len(calls) > 1
    assert calls[-1] == ("image moments", len(training), len(training))
    with pytest.raises(InputError, match="no image has label 3"):
        image_moments(training, 3)
