"""SmoothedClosedForm: the average of ideal posterior means, against loops in float64."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError

# float32 logits; see the tolerances of the exact engines.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def images(real_images):
    return real_images(50, (7, 6), channels=3, classes=(2, 5))


@pytest.fixture(scope="module")
def noisy(real_images):
    return lambda t: torch.from_numpy(brute.noisy(real_images(3, (7, 6), channels=3, skip=700)[0], t))


def ideal_means(images, x, t, draws, smoothing, seed, number):
    """Return the ideal posterior mean of each displaced image, as the paper writes it: at z = x / (a + b)."""
    beta = brute.beta_of(t)
    sum_of_scales = np.sqrt(1 - beta) + np.sqrt(beta)
    rng = np.random.default_rng([seed, number, int(np.float64(t).view(np.uint64))])
    means = []
    for _ in range(draws):
        z = x.double().numpy() / sum_of_scales + smoothing * rng.standard_normal(x.shape, np.float32)
        truth = brute.posterior_mean(images, z * sum_of_scales, beta, "IS")
        means.append(truth.mean)
    return np.stack(means)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("label", [None, 5])
def test_it_is_the_average_of_ideal_means_at_displaced_images(images, noisy, t, label):
    pixels, labels = images
    chosen = pixels if label is None else pixels[labels == label]
    m = pi.denoiser("smoothed", pixels, labels, draws=5, smoothing=0.7)
    found = m.posterior_mean(noisy(t), t, label=label, seed=3, image_ids=[4, 0, 9])
    for i, number in enumerate((4, 0, 9)):
        means = ideal_means(chosen, noisy(t)[i], t, 5, 0.7, 3, number)
        np.testing.assert_allclose(found.mean[i], means.mean(0), rtol=0, atol=TOLERANCE)
        stderr = np.sqrt((means.var(0, ddof=1) / 5).mean(0))
        np.testing.assert_allclose(found.stderr[i], stderr, rtol=0, atol=TOLERANCE)
    assert found.patches_evaluated == 3 * 42 * 5 * len(chosen)


def test_without_smoothing_it_is_the_ideal_score_machine(images, noisy):
    ideal = pi.denoiser("IS", images[0]).posterior_mean(noisy(0.6), 0.6)
    found = pi.denoiser("smoothed", images[0], smoothing=0.0, draws=3).posterior_mean(noisy(0.6), 0.6)
    torch.testing.assert_close(found.mean, ideal.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.ess, ideal.ess, rtol=1e-4, atol=1e-4)
    assert (found.stderr < 1e-5).all()


def test_draws_belong_to_the_seed_the_image_and_the_time(images, noisy):
    m = pi.denoiser("smoothed", images[0], draws=2)
    x = noisy(0.5)[:1].repeat(2, 1, 1, 1)

    def mean(t=0.5, **options):
        return m.posterior_mean(x, t, **options).mean

    same = mean(seed=1, image_ids=[7, 7])
    assert torch.equal(same[0], same[1])
    assert not torch.equal(mean(seed=1)[0], mean(seed=1)[1])
    assert not torch.equal(mean(seed=1)[0], mean(seed=2)[0])
    by_time = [
        m.posterior_mean(x[:1], t).mean - pi.denoiser("IS", images[0]).posterior_mean(x[:1], t).mean
        for t in (0.5, np.nextafter(0.5, 1))
    ]
    assert not torch.allclose(*by_time, atol=1e-3)


def test_the_standard_error_is_right(images, noisy):
    """Means of many seeds scatter as the standard error says."""
    m = pi.denoiser("smoothed", images[0], draws=8)
    x = noisy(0.4)[:1].repeat(60, 1, 1, 1)
    e = m.posterior_mean(x, 0.4)
    scatter = e.mean.double().var(0).mean().sqrt()
    predicted = e.stderr.double().square().mean().sqrt()
    assert 0.8 < scatter / predicted < 1.25  # 60 means of 8 draws
    assert pi.denoiser("smoothed", images[0], draws=1).posterior_mean(x[:1], 0.4).stderr.isnan().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws: must be at least 1, got 0"),
        ({"draws": True}, "draws: must be a whole number"),
        ({"draws": 2.5}, "draws: must be a whole number"),
        ({"smoothing": -1.0}, "smoothing: must be a number from 0 to 10, got -1"),
        ({"smoothing": float("nan")}, "smoothing: must be a number from 0"),
        ({"smoothing": 10**400}, "smoothing: must be a number from 0"),
        ({"smoothing": 11}, "smoothing: must be a number from 0 to 10, got 11"),
    ],
)
def test_options_out_of_range_are_refused(images, options, message):
    with pytest.raises(InputError, match=message):
        pi.denoiser("smoothed", images[0], **options)
