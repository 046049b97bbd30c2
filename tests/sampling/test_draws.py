"""Noise of samplers: one noise per image, whatever the batch."""

import numpy as np
import pytest
import torch

from patchindex.sampling import draw_noise
from patchindex.sampling.draws import step_noise
from patchindex.study.noised import fresh_noise


def test_noise_of_an_image_depends_on_seed_and_number_only():
    a = draw_noise(3, 4, (3, 8, 8))
    assert a.dtype == torch.float32
    assert torch.equal(a, draw_noise(3, 6, (3, 8, 8))[:4])
    assert not torch.equal(a, draw_noise(4, 4, (3, 8, 8)))
    assert not torch.equal(a[0], a[1])


def test_seeds_of_more_than_32_bits_have_noise_of_their_own():
    """NumPy joins the words of all numbers of a seed: 2**32 and image 0 have the words of 0 and image 1."""
    shape, large = (1, 8, 8), 2**32 + 3
    x = torch.zeros(1, *shape)
    start, step = draw_noise(large, 1, shape), step_noise(large, [0])(x, 1)
    assert torch.equal(start, draw_noise(large, 2, shape)[:1])
    assert torch.equal(step, step_noise(large, [0, 1])(x, 1)[:1])
    noised = fresh_noise(large, 0, 1, shape)
    small = [draw_noise(3, 2, shape), step_noise(3, [1])(x, 0), fresh_noise(3, 1, 1, shape)]
    seen = torch.cat([start, step, noised, draw_noise(2**64 + large, 1, shape), *small]).flatten(1)
    assert len(seen.unique(dim=0)) == len(seen)


def test_seeds_of_32_bits_keep_their_noise():
    for seed in (0, 2**32 - 1):
        expected = np.random.default_rng([seed, 1]).standard_normal((1, 8, 8), np.float32)
        assert np.array_equal(draw_noise(seed, 2, (1, 8, 8))[1].numpy(), expected)


def test_noise_is_standard_normal():
    z = draw_noise(0, 10, (1, 100, 100)).double()
    # 1e5 draws: the mean is known to 0.0032, the standard deviation to 0.0022; four of these each.
    assert abs(z.mean()) < 0.013
    assert abs(z.std() - 1) < 0.009
    assert float((z.abs() > 1.96).double().mean()) == pytest.approx(0.05, abs=0.003)


def test_noise_of_a_step_depends_on_seed_image_and_step_only():
    x = torch.zeros(2, 1, 8, 8)
    drawn = step_noise(3, [5, 7])(x, 4)
    assert torch.equal(drawn[1:], step_noise(3, [7])(x[:1], 4))
    others = [step_noise(3, [5])(x[:1], 3), step_noise(4, [5])(x[:1], 4), draw_noise(3, 6, (1, 8, 8))[5:]]
    for other in others:
        assert (drawn[:1] - other).abs().max() > 0.1
