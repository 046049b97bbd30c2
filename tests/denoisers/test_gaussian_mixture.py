"""A mixture of Gaussians by label, against densities of scipy and linear algebra of numpy in float64."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch
from watched import linux_only, run_watched

import patchindex as pi
from patchindex.errors import InputError

# The input and the result are float32, all between is float64.
TOLERANCE = 2e-6
CLASSES = (2, 5, 8)


@pytest.fixture(scope="module")
def images(real_images):
    return real_images(90, (6, 5), channels=3, classes=CLASSES)


@pytest.fixture(scope="module")
def noisy(real_images):
    return lambda t: torch.from_numpy(brute.noisy(real_images(4, (6, 5), channels=3, skip=700)[0], t))


def expected_mean(images, labels, x, beta):
    """Return the posterior mean and the ESS of the mixture, written down as in the literature."""
    v, y = (images.transpose(0, 3, 1, 2) / 127.5 - 1).reshape(len(images), -1), x.double().flatten(1).numpy()
    a, logs, means = np.sqrt(1 - beta), [], []
    for label in np.unique(labels):
        mine = v[labels == label]
        m, s = mine.mean(0), np.cov(mine.T, bias=True)
        noisy = a * a * s + beta * np.eye(len(m))
        residual = y - a * m
        solved = np.linalg.solve(noisy, residual.T).T
        means.append(m + a * solved @ s)
        logs.append(np.log(len(mine)) - 0.5 * (np.linalg.slogdet(noisy)[1] + (residual * solved).sum(1)))
    weights = np.exp(np.array(logs) - np.max(logs, 0))
    weights /= weights.sum(0)
    return np.einsum("cb,cbd->bd", weights, np.array(means)).reshape(x.shape), 1 / (weights**2).sum(0)


@pytest.mark.parametrize("t", [0.1, 0.7, 0.9, 0.97])
def test_it_is_the_mean_of_the_mixture(images, noisy, t):
    """Ninety images of ninety numbers: each Gaussian has fewer components than numbers."""
    x, found = noisy(t), pi.denoiser("gaussian-mixture", *images)
    mean, ess = expected_mean(*images, x, brute.beta_of(t))
    e = found.posterior_mean(x, t)
    np.testing.assert_allclose(e.mean.numpy(), mean, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(e.ess[:, 0, 0].numpy(), ess, rtol=1e-4)


def test_several_gaussians_matter_at_high_noise_and_one_at_low_noise(images, noisy):
    mixture = pi.denoiser("gaussian-mixture", *images)
    assert float(mixture.posterior_mean(noisy(0.99), 0.99).ess.min()) > 1.5
    assert float(mixture.posterior_mean(noisy(0.05), 0.05).ess.max()) < 1.001


@pytest.mark.parametrize("label", [None, 5])
def test_with_one_gaussian_it_is_wiener(images, noisy, label):
    pixels, labels = images
    if label is None:  # images without labels
        pair = [pi.denoiser(name, pixels) for name in ("gaussian-mixture", "wiener")]
    else:
        pair = [pi.denoiser(name, pixels, labels, label=label) for name in ("gaussian-mixture", "wiener")]
    mixture, wiener = (each.posterior_mean(noisy(0.6), 0.6) for each in pair)
    torch.testing.assert_close(mixture.mean, wiener.mean, rtol=0, atol=TOLERANCE)
    assert (mixture.ess == 1).all()


def test_little_memory_changes_no_result(images, noisy):
    x = noisy(0.7)
    expected = pi.denoiser("gaussian-mixture", *images).posterior_mean(x, 0.7)
    small = pi.denoiser("gaussian-mixture", *images, memory="300K")  # one decomposition takes 72 KiB
    torch.testing.assert_close(small.posterior_mean(x, 0.7).mean, expected.mean)


def test_options_of_wiener_are_refused(images):
    with pytest.raises(InputError, match="gaussian-mixture has no option 'circulant'"):
        pi.denoiser("gaussian-mixture", *images, circulant=True)
    with pytest.raises(InputError, match="memory: the covariance of 90 numbers per image needs") as refused:
        pi.denoiser("gaussian-mixture", *images, memory="9K")
    assert str(refused.value).endswith("; give more, or use smaller images")  # `circulant` is Wiener's


MANY = """
import numpy as np, torch, patchindex as pi

images = np.random.default_rng(0).integers(0, 256, (400, 16, 16, 3), np.uint8)
mixture = pi.denoiser("gaussian-mixture", images, labels=np.arange(400) % 200, memory="8M")
x = torch.randn(48, 3, 16, 16)
mixture.posterior_mean(x[:1], 0.5)
print(json.dumps(rise(lambda: mixture.posterior_mean(x, 0.5))))
"""


@linux_only
def test_the_means_of_many_labels_are_not_in_memory_together():
    """The means of all labels take 200 * 48 * 768 * 8 bytes, which is 56 MiB."""
    assert run_watched(MANY) < 40 << 20
