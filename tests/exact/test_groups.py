"""Sums of groups: unbiased, with the variance of their spread, and an allowance that the tail decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from patchindex.exact.groups import GroupSums
from patchindex.softmax import SoftmaxState

CPU = torch.device("cpu")


def states_of(logits, centres):
    """Return the states of groups with one member each: logits (G, M), centres (G, M, C)."""
    return SoftmaxState.of(logits.unsqueeze(-1), centres.unsqueeze(-2))


def sums_of(states, *ends):
    sums = GroupSums.empty(states.weight.shape[1], states.centre.shape[-1], CPU)
    for first, last in zip((0, *ends), (*ends, len(states.weight)), strict=True):
        sums.add(states[first:last])
    return sums


@pytest.fixture
def population():
    """Two hundred groups for three pixels of two channels; the logits of the last pixel are far apart."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(200, 3)) * [0.5, 1.0, 40.0] + [0.0, 500.0, -3.0])
    return logits, torch.from_numpy(rng.uniform(-1, 1, (200, 3, 2)))


def test_all_groups_give_the_exact_mean_and_no_error(population):
    logits, centres = population
    sums = sums_of(states_of(logits, centres), 3, 40, 41)
    weights = torch.softmax(logits, 0)
    state = sums.state(1.0)
    torch.testing.assert_close(state.mean(), (weights.unsqueeze(-1) * centres).sum(0))
    torch.testing.assert_close(state.log_weight(), torch.logsumexp(logits, 0))
    torch.testing.assert_close(state.ess(), 1 / weights.square().sum(0))
    assert (state.mean_variance() == 0).all()
    assert (sums.allowance(1.0) == 0).all()
    assert state.count.tolist() == [200, 200, 200]


def test_the_variance_is_the_variance_over_samples(population):
    logits, centres = (each[:, :1] for each in population)
    states, means, variances = states_of(logits, centres), [], []
    for seed in range(400):
        chosen = torch.from_numpy(np.random.default_rng(seed).permutation(200)[:50])
        state = sums_of(states[chosen]).state(0.25)
        means.append(state.mean())
        variances.append(state.mean_variance())
    spread, said = torch.stack(means).var(0), torch.stack(variances).mean(0)
    torch.testing.assert_close(said, spread, rtol=0.2, atol=0)  # a variance of 400 draws is within 7 %


def test_a_heavy_tail_needs_a_larger_allowance(population):
    logits, centres = population
    allowances = []
    for factor in (0.2, 1.0, 3.0):
        sums = sums_of(states_of(factor * logits[:, :1], centres[:, :1])[:64])
        allowances.append(float(sums.allowance(64 / 200)))
    assert allowances == sorted(allowances)
    assert allowances[0] < 1e-3
    assert allowances[-1] > 0.02
    sums = sums_of(states_of(logits, centres)[:64])
    assert (sums.allowance(0.9) < sums.allowance(0.3)).all()


def test_sums_of_some_pixels_are_those_of_the_pixels_alone(population):
    states = states_of(*population)
    some = torch.tensor([True, False, True])
    mine, alone = sums_of(states, 30).restrict(some), sums_of(states[:, some])
    for found, expected in zip(vars(mine).values(), vars(alone).values(), strict=True):
        torch.testing.assert_close(found, expected)
