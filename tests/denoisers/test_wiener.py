"""Wiener: the posterior mean of a Gaussian, against float64 linear algebra of numpy."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError

# The input and the result are float32, all between is float64.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def images(real_images):
    return real_images(60, (6, 5), channels=3, classes=(2, 5))


@pytest.fixture(scope="module")
def noisy(real_images):
    return lambda t: torch.from_numpy(brute.noisy(real_images(3, (6, 5), channels=3, skip=700)[0], t))


def flat(images):
    return (images.transpose(0, 3, 1, 2) / 127.5 - 1).reshape(len(images), -1)


def gaussian_mean(vectors, x, beta):
    """Return m + S (S + sigma^2 I)^-1 (x / a - m), written down as in the literature."""
    mean, covariance = vectors.mean(0), np.cov(vectors.T, bias=True)
    a = np.sqrt(1 - beta)
    residual = x.double().flatten(1).numpy() / a - mean
    gain = covariance @ np.linalg.inv(covariance + beta / a**2 * np.eye(len(mean)))
    return (mean + residual @ gain.T).reshape(x.shape)


def all_shifts(images):
    _, height, width, _ = images.shape
    return np.concatenate([np.roll(images, (i, j), (1, 2)) for i in range(height) for j in range(width)])


@pytest.mark.parametrize("t", [0.02, 0.3, 0.7, 0.97])
@pytest.mark.parametrize("label", [None, 5])
def test_it_is_the_mean_of_the_gaussian(images, noisy, t, label):
    """60 images of 90 numbers use the products of images, and half of them too."""
    pixels, labels = images
    chosen = pixels if label is None else pixels[labels == label]
    expected = gaussian_mean(flat(chosen), noisy(t), brute.beta_of(t))
    found = pi.denoiser("wiener", pixels, labels, label=label).posterior_mean(noisy(t), t)
    np.testing.assert_allclose(found.mean.numpy(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("t", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("size", [(6, 5), (5, 6), (4, 4)])
def test_more_images_than_numbers(real_images, t, size):
    images = real_images(300, size)[0]
    x = torch.from_numpy(brute.noisy(real_images(3, size, skip=700)[0], t))
    expected = gaussian_mean(flat(images), x, brute.beta_of(t))
    found = pi.denoiser("wiener", images).posterior_mean(x, t).mean
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("t", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("size", [(6, 5), (5, 6)])
@pytest.mark.parametrize("channels", [1, 3])
def test_circulant_is_the_gaussian_of_all_cyclic_shifts(real_images, t, size, channels):
    images = real_images(12, size, channels=channels)[0]
    x = torch.from_numpy(brute.noisy(real_images(2, size, channels=channels, skip=700)[0], t))
    expected = gaussian_mean(flat(all_shifts(images)), x, brute.beta_of(t))
    found = pi.denoiser("wiener", images, circulant=True).posterior_mean(x, t).mean
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=TOLERANCE)


def test_circulant_commutes_with_cyclic_shifts(images, noisy):
    m = pi.denoiser("wiener", images[0], circulant=True)
    x = noisy(0.5)
    shifted = m.posterior_mean(x.roll((2, 3), (2, 3)), 0.5).mean
    torch.testing.assert_close(shifted, m.posterior_mean(x, 0.5).mean.roll((2, 3), (2, 3)), rtol=0, atol=1e-6)


def test_the_scores_are_the_gradient_of_a_log_density(images, noisy):
    """A linear score is a gradient because its matrix is symmetric."""
    m = pi.denoiser("wiener", images[0])
    x = noisy(0.5)[:1]
    base = m.score(x, 0.5).flatten().double()
    size = x.numel()
    jacobian = torch.stack(
        [m.score(x + unit.reshape(x.shape), 0.5).flatten().double() - base for unit in torch.eye(size)]
    )
    torch.testing.assert_close(jacobian, jacobian.T, rtol=0, atol=1e-5)


def test_equal_images_are_the_posterior_mean(images, noisy):
    one = np.repeat(images[0][:1], 4, 0)
    for circulant in (False, True):
        m = pi.denoiser("wiener", one, circulant=circulant)
        mean = m.posterior_mean(noisy(0.6), 0.6).mean
        assert torch.isfinite(mean).all()
        if not circulant:
            np.testing.assert_allclose(mean[0].flatten().numpy(), flat(one)[0], rtol=0, atol=1e-6)


def test_it_has_no_softmax_and_no_error(images, noisy):
    e = pi.denoiser("wiener", images[0]).posterior_mean(noisy(0.5), 0.5)
    assert e.ess.isnan().all()
    assert (e.stderr == 0).all()
    assert (e.captured_mass == 1).all()
    assert (e.patches_evaluated, e.exact_pixels) == (0, 0)
    step = pi.sample(pi.denoiser("wiener", images[0]), 1, 2).steps[0]
    assert (step["ess"], step["stderr"], step["captured_mass"]) == (None, 0.0, 1.0)


def test_a_covariance_larger_than_the_memory_is_refused(real_images):
    many = real_images(300, 10)[0]
    with pytest.raises(
        InputError, match=r"memory: the covariance of 100 numbers .* needs 312.5 KiB, more than"
    ) as refused:
        pi.denoiser("wiener", many, memory="300K")
    assert str(refused.value).endswith("; give more, or use circulant=True or smaller images")
    pi.denoiser("wiener", many[:10], memory="300K").prepare()  # few images: their products are smaller
    pi.denoiser("wiener", many, memory="300K", circulant=True).prepare()
    m = pi.denoiser("wiener", many, (np.arange(300) > 9).astype(int), memory="300K", label=0)
    with pytest.raises(InputError, match=r"needs 312.5 KiB"):
        m.prepare(1)


def test_decompositions_are_made_once_per_label_and_kept_within_the_memory(images, noisy, monkeypatch):
    calls = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (calls.append(len(matrix)), eigh(matrix))[1])
    m = pi.denoiser("wiener", *images)
    for label in (2, 5, None, 2, 5, None):
        m.posterior_mean(noisy(0.5), torch.tensor([0.5, 0.2, 0.5]), label=label)
    assert len(calls) == 3
    before = len(calls)
    small = pi.denoiser("wiener", *images, memory="210K")  # room for the decomposition of all images only
    large = [small.posterior_mean(noisy(0.5), 0.5, label=label).mean for label in (2, 5, None, 2)]
    assert len(calls) == before + 4
    torch.testing.assert_close(large[0], large[-1], rtol=0, atol=1e-6)


def test_prepare_reports_its_stages(real_images):
    stages = []
    m = pi.denoiser("wiener", real_images(300, 10)[0])
    m.prepare(progress=lambda stage, done, total: stages.append((stage, done / total)))
    assert stages[-1] == ("decomposition of the covariance", 1)
    assert ("image moments", 1) in stages
    before = len(stages)
    m.prepare(progress=lambda *call: stages.append(call))
    assert len(stages) == before
