"""Adapters: the posterior mean as k-diffusion, DDPM and rectified flows write it."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError
from patchindex.schedules.frames import beta_of_flow, beta_of_sigma, flow_norm, sigma_of

TOLERANCE = 1e-4  # of float32 posterior means in [-1, 1]


@pytest.fixture(scope="module")
def pixels(real_images):
    return real_images(6, 8)[0]


@pytest.fixture(scope="module")
def machine(pixels):
    return pi.ScoreMachine(pixels, machine="LS", locality=5, noise="flow")


def expected_mean(pixels, x, beta):
    return brute.posterior_mean(pixels, x.double().numpy(), beta, "LS", 5).mean


def test_frames_are_scalings_of_one_image():
    rng = np.random.default_rng(0)
    clean, eps = rng.uniform(-1, 1, 9), rng.standard_normal(9)
    for beta in (1e-6, 0.2, 0.9999):
        x = (1 - beta) ** 0.5 * clean + beta**0.5 * eps
        sigma = sigma_of(beta)
        s = sigma / (1 + sigma)
        np.testing.assert_allclose(x / (1 - beta) ** 0.5, clean + sigma * eps, rtol=1e-9)
        np.testing.assert_allclose(x * flow_norm(s), (1 - s) * clean + s * eps, rtol=1e-9)
        assert beta_of_sigma(sigma) == pytest.approx(beta, rel=1e-12)
        assert beta_of_flow(s) == pytest.approx(beta, rel=1e-12)


def test_a_denoiser_of_sigma(machine, pixels):
    d = machine.as_denoiser()
    y = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sigmas = [0.05, 0.7, 70.0]
    found = d(y * torch.tensor(sigmas)[:, None, None, None], torch.tensor(sigmas))
    for i, sigma in enumerate(sigmas):
        beta = sigma**2 / (1 + sigma**2)
        x = y[i] * sigma / (1 + sigma**2) ** 0.5
        np.testing.assert_allclose(found[i], expected_mean(pixels, x, beta), rtol=0, atol=TOLERANCE)
    one = d((y * 0.7).double(), 0.7)
    assert one.dtype == torch.float64
    np.testing.assert_allclose(one[1], found[1], rtol=0, atol=1e-6)


def test_the_noise_in_an_image(machine, pixels):
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([0.3, 0.8])
    eps = machine.as_epsilon()(x, times)
    for i, t in enumerate(times.double().tolist()):
        beta = machine.noise(t)
        mean = expected_mean(pixels, x[i], beta)
        expected = (x[i].double().numpy() - (1 - beta) ** 0.5 * mean) / beta**0.5
        np.testing.assert_allclose(eps[i], expected, rtol=0, atol=TOLERANCE / beta**0.5)
    torch.testing.assert_close(
        eps[:1], -(machine.noise(0.3) ** 0.5) * machine.score(x[:1], 0.3), rtol=0, atol=1e-4
    )


def test_the_velocity_of_a_rectified_flow(machine, pixels):
    z = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    times = [0.2, 0.6, 1.0]
    v = machine.as_velocity()(z, torch.tensor(times))
    for i, s in enumerate(times):
        norm = (s**2 + (1 - s) ** 2) ** 0.5
        # At s = 1 the images are noise, and the posterior mean is nearly the mean of the patches.
        beta = min((s / norm) ** 2, 1 - 1e-9)
        mean = expected_mean(pixels, z[i] / norm, beta)
        np.testing.assert_allclose(z[i] - s * v[i], mean, rtol=0, atol=TOLERANCE)
        # z = (1 - s) x_0 + s eps and v = eps - x_0
        eps = (z[i].double().numpy() - (1 - s) * mean) / s
        np.testing.assert_allclose(z[i] + (1 - s) * v[i], eps, rtol=0, atol=1e-3)


def test_labels(real_images):
    pixels, labels = real_images(6, 8, classes=(2, 5))
    m = pi.ScoreMachine(pixels, labels, machine="LS", locality=3, noise="edm")
    y = 2 * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = pi.ScoreMachine(pixels[labels == 5], machine="LS", locality=3, noise="edm").as_denoiser()(y, 2.0)
    torch.testing.assert_close(m.as_denoiser(label=5)(y, 2.0), alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(m.as_denoiser(label=2)(y, 2.0, label=5), alone, rtol=0, atol=1e-5)
    assert (m.as_denoiser()(y, 2.0) - alone).abs().max() > 0.01


@pytest.mark.parametrize("sigma", [0, -1.0, float("nan"), float("inf"), 1e200, "much", torch.ones(2)])
def test_noise_levels_that_make_no_sense_are_refused(machine, sigma):
    with pytest.raises(InputError, match=r"sigma: must be one positive number, or 3, up to 3\.4e"):
        machine.as_denoiser()(torch.zeros(3, 1, 8, 8), sigma)


@pytest.mark.parametrize("s", [0, 1.5, 1e200])
def test_times_of_a_flow_that_make_no_sense_are_refused(machine, s):
    with pytest.raises(InputError, match="s: must be one positive number, or 3, up to 1, got"):
        machine.as_velocity()(torch.zeros(3, 1, 8, 8), s)


def test_more_noise_than_the_schedule_has_is_refused_with_a_way_out(pixels):
    m = pi.ScoreMachine(pixels, machine="LS", locality=3)
    with pytest.raises(InputError, match=r"cosine schedule has no noise variance .* such as 'flow'"):
        m.as_denoiser()(torch.zeros(1, 1, 8, 8), 1000.0)
