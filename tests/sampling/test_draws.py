"""Noise of samplers: one noise per image, whatever the batch."""

import pytest
import torch

from patchindex.sampling import draw_noise
from patchindex.sampling.draws import step_noise


def test_noise_of_an_image_depends_on_seed_and_number_only():
    a = draw_noise(3, 4, (3, 8, 8))
    assert a.dtype == torch.float32
    assert torch.equal(a, draw_noise(3, 6, (3, 8, 8))[:4])
    assert not torch.equal(a, draw_noise(4, 4, (3, 8, 8)))
    assert not torch.equal(a[0], a[1])


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
