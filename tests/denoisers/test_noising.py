"""Clean images with noise, by the noise schedule of a denoiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError

SHAPE = (3, 8, 6)


@pytest.fixture(scope="module")
def source(real_images):
    return pi.open_images(real_images(6, SHAPE[1:], channels=3)[0])


@pytest.fixture(scope="module", params=["cosine", "flow"])
def wiener(source, request):
    return pi.denoiser("wiener", source, noise=request.param)


def formula(clean, eps, beta):
    return np.sqrt(1 - beta) * np.asarray(clean, np.float64) + np.sqrt(beta) * np.asarray(eps, np.float64)


def test_noise_of_a_seed_is_added_by_the_schedule_of_the_denoiser(wiener, source):
    clean, t = source.floats([4, 1]), 0.3
    x = wiener.add_noise(clean, t, seed=5)
    assert (x.dtype, tuple(x.shape)) == (torch.float32, (2, *SHAPE))
    expected = formula(clean, pi.sampling.draw_noise(5, 2, SHAPE), wiener.noise(t))
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-6)  # float32
    assert not torch.equal(x, wiener.add_noise(clean, t, seed=6))


def test_one_image_stands_for_many_times_and_one_noise_for_many_images(wiener, source):
    clean, times = source.floats(2), torch.tensor([0.1, 0.5, 0.9])
    eps = pi.sampling.draw_noise(1, 3, SHAPE)
    x = wiener.add_noise(clean, times, eps=eps)
    for row, t in enumerate(times.tolist()):
        np.testing.assert_allclose(x[row], formula(clean[0], eps[row], wiener.noise(t)), rtol=0, atol=1e-6)
    many = wiener.add_noise(source.floats(), 0.5, eps=eps[:1])
    assert len(many) == 6
    assert torch.equal(many[3:4], wiener.add_noise(source.floats(3), 0.5, eps=eps[:1]))


def test_a_start_from_an_image_has_the_same_noise(wiener, source):
    start = pi.sampling.ImageStart(source.floats(0), strength=0.5)
    drawn = pi.sample(wiener, n=2, steps=4, seed=3, start=start, trajectory=True)
    x = wiener.add_noise(source.floats(0).expand(2, -1, -1, -1), 0.5, seed=3)
    torch.testing.assert_close(drawn.trajectory.step(0).x, x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x_0": torch.zeros(SHAPE)}, "x_0: must be a tensor of shape"),
        ({"x_0": 255 * torch.ones(1, *SHAPE)}, "x_0: values must lie in"),
        ({"x_0": 1.5 * torch.ones(1, *SHAPE)}, "x_0: values must lie in .*ImageSource.floats"),
        ({"t": 1.0}, "t: must lie in"),
        ({"t": "noon"}, "t: is not a time"),
        ({"t": torch.tensor([0.1, 0.2, 0.3])}, "x_0: has 2, and t has 3; give one, or 3"),
        ({"eps": torch.zeros(3, *SHAPE)}, "x_0: has 2, and eps has 3"),
        ({"eps": torch.zeros(2, 1, 8, 6)}, "eps: must be a tensor of shape"),
        ({"seed": -1}, "seed: must be at least 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(wiener, source, arguments, message):
    with pytest.raises(InputError, match=message):
        wiener.add_noise(**({"x_0": source.floats([0, 1]), "t": 0.5} | arguments))
