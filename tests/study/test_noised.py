"""The noise of noisy images differs from the noise that samples start from, and from that of samplers."""

from __future__ import annotations

import torch

from patchindex.sampling import draw_noise
from patchindex.sampling.draws import step_noise
from patchindex.study.noised import fresh_noise

SHAPE = (1, 6, 6)


def test_no_noise_of_a_study_is_drawn_twice():
    """NumPy takes the seeds (s, i) and (s, i, 0) for the same."""
    start = draw_noise(5, 20, SHAPE)
    kinds = [fresh_noise(5, kind, 4, SHAPE) for kind in (1, 2)]
    steps = [step_noise(5, range(4))(torch.zeros(1, *SHAPE), i) for i in range(1, 4)]
    every = torch.cat([start, *kinds, *steps]).flatten(1)
    assert len(torch.unique(every, dim=0)) == len(every)
    assert torch.corrcoef(every).fill_diagonal_(0).abs().max() < 0.8  # of 36 numbers; equal draws have 1


def test_an_image_has_its_own_noise():
    assert torch.equal(fresh_noise(5, 1, 4, SHAPE)[:2], fresh_noise(5, 1, 2, SHAPE))
    assert not torch.equal(fresh_noise(6, 1, 2, SHAPE), fresh_noise(5, 1, 2, SHAPE))
