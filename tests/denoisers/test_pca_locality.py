"""PCALocality: one softmax over all images under masks from their covariance, as brute force finds it."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.denoisers.pca_locality import PCALocality
from patchindex.errors import InputError

# float32 sums of a few hundred squared differences: logits of about 100 have errors of about 1e-5.
TOLERANCE = 1e-4


def masks_of(images, beta, tau, relative_to="matrix"):
    """Return the masks (D, D) of images, straight from the definition, with entries (C, H, W)."""
    v = flat(images)
    covariance = np.cov(v.T, bias=True)
    w = covariance @ np.linalg.inv(covariance + beta / (1 - beta) * np.eye(len(covariance)))
    gains = np.where(np.abs(np.diag(w)) < 1e-6, 1, np.diag(w))
    ratios = np.abs(w / gains[:, None])
    largest = ratios.max(1, keepdims=True) if relative_to == "pixel" else ratios.max()
    return (ratios >= tau * largest) & (v.var(0) > 0)[:, None]


def flat(images):
    return (images.astype(np.float64).transpose(0, 3, 1, 2) / 127.5 - 1).reshape(len(images), -1)


def truth(images, x, beta, masks):
    """Return posterior means (B, C, H, W) and ESS (B, H, W), one pixel and channel at a time, in float64."""
    v, a = flat(images), (1 - beta) ** 0.5
    means, sizes = np.empty((2, len(x), v.shape[1]))
    for b, image in enumerate(x.double().numpy().reshape(len(x), -1)):
        squares = (image / a - v) ** 2
        for m, mask in enumerate(masks):
            logits = -squares[:, mask].sum(1) / (2 * beta / (1 - beta))
            w = np.exp(logits - logits.max())
            means[b, m] = w @ v[:, m] / w.sum()
            sizes[b, m] = w.sum() ** 2 / (w**2).sum()
    return means.reshape(x.shape), sizes.reshape(x.shape).mean(1)


@pytest.fixture(scope="module", params=[(8, 3), (12, 1)], ids=["colour", "grey"])
def case(request, real_images):
    size, channels = request.param
    images, labels = real_images(150, size, channels=channels, classes=(2, 5, 8))
    return images, labels, real_images(2, size, channels=channels, skip=900)[0]


@pytest.mark.parametrize("t", [0.02, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("tau", [None, 0.3])
def test_the_posterior_mean_agrees_with_brute_force(case, t, tau):
    images, _, clean = case
    beta, x = brute.beta_of(t), torch.from_numpy(brute.noisy(clean, t))
    d = pi.denoiser("pca-locality", images, tau=tau)
    found = d.posterior_mean(x, t)
    mean, ess = truth(images, x, beta, masks_of(images, beta, d.tau))
    np.testing.assert_allclose(found.mean.numpy(), mean, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found.ess.numpy(), ess, rtol=1e-3)
    assert (found.captured_mass == 1).all()
    assert (found.stderr == 0).all()
    assert found.patches_evaluated == x.numel() * len(images)


@pytest.mark.parametrize("relative_to", ["matrix", "pixel"])
@pytest.mark.parametrize("t", [0.1, 0.9])
def test_masks_are_the_definition(case, t, relative_to):
    images, _, _ = case
    beta = brute.beta_of(t)
    found = PCALocality(images, tau=0.1, relative_to=relative_to).masks(beta)
    size = found.shape[:3].numel()
    assert (found.reshape(size, size).numpy() == masks_of(images, beta, 0.1, relative_to)).all()


def test_masks_are_of_the_label(case):
    images, labels, _ = case
    names = [f"class {number}" for number in range(9)]
    source = pi.open_images(images, labels=labels)
    source.label_names = names
    d = PCALocality(source, label=5)
    for given, label in ((None, 5), (8, 8), ("class 8", 8)):
        alone = PCALocality(images[labels == label]).masks(0.5)
        assert torch.equal(d.masks(0.5, given), alone)
    with pytest.raises(InputError, match="label: no image has label 4"):
        d.masks(0.5, 4)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5, float("nan"), "0.5"])
def test_masks_at_no_noise_variance_are_refused(case, beta):
    with pytest.raises(InputError, match=r"beta: must be a number in \(0, 1\)"):
        PCALocality(case[0]).masks(beta)


def test_a_label_has_a_covariance_and_a_softmax_of_its_own(case):
    images, labels, clean = case
    x = torch.from_numpy(brute.noisy(clean, 0.5))
    d = PCALocality(images, labels, label=5)
    for label in (5, 8):
        alone = PCALocality(images[labels == label]).posterior_mean(x, 0.5)
        found = d.posterior_mean(x, 0.5, label=None if label == 5 else label)
        torch.testing.assert_close(found.mean, alone.mean, rtol=0, atol=TOLERANCE)
        assert found.patches_evaluated == x.numel() * (labels == label).sum()


@pytest.mark.parametrize("t", [0.05, 0.8])
def test_memory_threads_and_batches_do_not_change_the_result(case, t):
    """Unlike implementations that average over batches of images."""
    images, _, clean = case
    x = torch.from_numpy(brute.noisy(clean, t))
    expected = PCALocality(images).posterior_mean(x, t)
    for options in ({"memory": 1}, {"memory": "1M"}, {"threads": 1}, {"threads": 3}):
        found = PCALocality(images, **options).posterior_mean(x, t)
        torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.ess, expected.ess, rtol=1e-4, atol=0)
    one = PCALocality(images).posterior_mean(x[1:], t).mean
    torch.testing.assert_close(one, expected.mean[1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("t", [0.05, 0.9])
def test_the_largest_x_agrees_with_brute_force(case, t):
    images, _, clean = case
    x = torch.from_numpy(brute.noisy(clean, t))
    x *= 99.9 / x.abs().max()
    beta = brute.beta_of(t)
    d = PCALocality(images)
    mean, _ = truth(images, x, beta, masks_of(images, beta, d.tau))
    # Logits of 1e6 at t = 0.05 are rounded by 0.1, and one image has nearly all of the weight.
    np.testing.assert_allclose(d.posterior_mean(x, t).mean.numpy(), mean, rtol=0, atol=1e-3)


def test_pixels_that_never_vary_keep_their_value(case):
    images, _, clean = case
    images = images.copy()
    images[:, 0] = 200
    found = PCALocality(images, tau=0.05).posterior_mean(torch.from_numpy(brute.noisy(clean, 0.3)), 0.3)
    np.testing.assert_allclose(found.mean[:, :, 0].numpy(), 200 / 127.5 - 1, rtol=0, atol=1e-6)
    assert torch.isfinite(found.mean).all()


def test_one_image_is_its_own_posterior_mean(case):
    images, _, clean = case
    found = PCALocality(images[:1]).posterior_mean(torch.from_numpy(brute.noisy(clean, 0.3)), 0.3)
    expected = np.broadcast_to(flat(images[:1]).reshape(found.mean.shape[1:]), found.mean.shape)
    np.testing.assert_allclose(found.mean.numpy(), expected, rtol=0, atol=1e-6)


def test_the_least_noise_gives_finite_means(case):
    images, _, _ = case
    x = torch.from_numpy(images[:2].transpose(0, 3, 1, 2) / 127.5 - 1).float()
    found = PCALocality(images).posterior_mean(x, 1e-9)
    torch.testing.assert_close(found.mean, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "channels", "tau"), [((8, 8), 1, 0.005), ((8, 8), 3, 0.05), ((8, 33), 3, 0.02)]
)
def test_the_default_threshold_is_the_authors(size, channels, tau):
    images = np.zeros((2, *size, channels), np.uint8)
    assert PCALocality(images).settings["tau"] == tau


def test_progress_covers_moments_and_scan(case):
    images, _, clean = case
    shares = []
    x = torch.from_numpy(brute.noisy(clean, 0.5))
    PCALocality(images, memory=1).posterior_mean(
        x, 0.5, progress=lambda _, done, total: shares.append(done / total)
    )
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.1
    assert shares[-1] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tau": -0.1}, r"tau: must be a number in \[0, 1\], got -0.1"),
        ({"tau": float("nan")}, "tau: must be a number in"),
        ({"tau": "0.1"}, "tau: must be a number in .* got '0.1'"),
        ({"relative_to": "row"}, "unknown maximum 'row'; use matrix or pixel"),
    ],
)
def test_bad_options_are_refused(case, options, words):
    with pytest.raises(InputError, match=words):
        PCALocality(case[0], **options)
