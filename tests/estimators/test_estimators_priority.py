"""`priority`: exact when all is drawn, unbiased when not, honest about its error, and repeatable."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError
from patchindex.estimators import priority
from patchindex.exact import scan

ALL = 10**5


def exact_state(store, x, t, k, label=None):
    beta = brute.beta_of(t)
    return scan(
        store.training, store.geometry(k), x, (1 - beta) ** 0.5, beta, label=label, dtype=torch.float64
    )


def machine(store, **options):
    return pi.ScoreMachine(store, estimator="priority", **options)


@pytest.mark.parametrize("label", [None, 4])
@pytest.mark.parametrize(("k", "t"), [(3, 0.1), (3, 0.95), (5, 0.6)])
def test_all_blocks_and_all_samples_are_exact(store, held_out, k, t, label):
    x = held_out(t)[:1]
    e = machine(store, blocks=ALL, samples=8000).posterior_mean(x, t, k=k, label=label)
    state = exact_state(store, x, t, k, label)
    # Logits are float32 sums: up to 1e3 at t >= 0.3, rounded by 1e-6 relative at worst, and 1e4 below.
    torch.testing.assert_close(
        e.mean.double(), state.mean().permute(0, 3, 1, 2), rtol=0, atol=2e-5 if t >= 0.3 else 5e-4
    )
    torch.testing.assert_close(e.ess.double(), state.ess(), rtol=1e-3 if t >= 0.3 else 1e-2, atol=0)
    assert e.patches_evaluated == e.codes_scanned == int(state.count.sum())
    torch.testing.assert_close(e.captured_mass, torch.ones_like(e.captured_mass))
    assert (e.stderr < 1e-6).all()


@pytest.mark.parametrize(("k", "t", "blocks", "samples"), [(3, 0.3, 20, 50), (5, 0.9, 30, 200)])
def test_sums_and_means_are_unbiased(store, held_out, k, t, blocks, samples, monkeypatch):
    """Numerator and denominator within their own Monte Carlo error, and the ratio nearly so."""
    drawn, seeds = [], 60
    real = priority.draw
    monkeypatch.setattr(priority, "draw", lambda *a, **b: drawn.append(real(*a, **b)) or drawn[-1])
    x = held_out(t)[:1]
    m = machine(store, blocks=blocks, samples=samples)
    means = torch.stack([m.posterior_mean(x, t, k=k, seed=seed).mean for seed in range(seeds)])
    truth = exact_state(store, x, t, k)[0].reshape((-1,))
    scale = torch.stack([d.state.max_logit for d in drawn]).sub(truth.max_logit).exp()
    for sums, true in (
        (torch.stack([d.state.weight for d in drawn]) * scale, truth.weight),
        (torch.stack([d.state.centre for d in drawn])[..., 0] * scale, truth.centre[..., 0]),
    ):
        # Pixels draw independently of each other: each gives a z, but where everything was drawn.
        random = sums.std(0) > 1e-5 * true.abs()
        z = ((sums.mean(0) - true) / (sums.std(0) / seeds**0.5))[random]
        assert abs(z.mean()) < 4 / len(z) ** 0.5 + 0.1  # skewed sums: their z has a small mean
        torch.testing.assert_close(sums.mean(0)[~random], true[~random], rtol=1e-4, atol=0)
    bias = (means.mean(0)[0].double() - truth.mean().T.reshape(means.shape[2:])).square().mean().sqrt()
    # A mean of 60 without any bias is off by 1 / sqrt(60) = 0.13 of the spread.
    assert bias < 0.25 * means.std(0).square().mean().sqrt() + 1e-4


@pytest.mark.parametrize(("k", "t"), [(3, 0.2), (3, 0.6), (5, 0.6), (5, 0.95)])
def test_standard_errors_are_honest(store, held_out, k, t):
    x = held_out(t)
    m = machine(store, blocks=60, samples=200)
    truth = exact_state(store, x, t, k).mean().permute(0, 3, 1, 2)
    errors, stderrs = [], []
    for seed in range(8):
        e = m.posterior_mean(x, t, k=k, seed=seed)
        errors.append((e.mean - truth).square().mean(1).sqrt())
        stderrs.append(e.stderr)
    error, stderr = torch.stack(errors), torch.stack(stderrs)
    assert (error <= 2 * stderr + 0.001).double().mean() > 0.9
    ratio = error.square().mean().sqrt() / stderr.square().mean().sqrt()
    assert 0.8 < ratio < 1.25


def test_a_label_draws_from_its_images_only(store, held_out):
    x, t, k = held_out(0.5), 0.5, 3
    e = machine(store, blocks=60, samples=500, label=9).posterior_mean(x, t, k=k)
    truth = exact_state(store, x, t, k, 9).mean().permute(0, 3, 1, 2)
    others = exact_state(store, x, t, k, 1).mean().permute(0, 3, 1, 2)
    error = (e.mean - truth).square().mean().sqrt()
    assert error < 3 * e.stderr.square().mean().sqrt()
    assert error < 0.2 * (truth - others).square().mean().sqrt()


def test_equal_seeds_give_equal_draws_in_any_batch_and_on_any_number_of_threads(store, held_out):
    x, t, k = held_out(0.5), 0.5, 3
    m = machine(store, blocks=20, samples=100)
    both = m.posterior_mean(x, t, k=k, seed=3)
    second = m.posterior_mean(x[1:], t, k=k, seed=3, samples=[1])
    torch.testing.assert_close(second.mean, both.mean[1:], rtol=0, atol=1e-6)
    for threads in (1, 2):
        one = pi.ScoreMachine(store, estimator="priority", blocks=20, samples=100, threads=threads)
        again = one.posterior_mean(x, t, k=k, seed=3)
        torch.testing.assert_close(again.mean, both.mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(again.stderr, both.stderr, rtol=1e-3, atol=1e-6)
    other = m.posterior_mean(x, t, k=k, seed=4)
    assert (other.mean - both.mean).abs().max() > 1e-3


def test_neighbouring_pixels_and_samples_draw_differently(store, held_out):
    """The same noisy image twice in a batch: other draws, the same expectation."""
    x = held_out(0.5)[:1].repeat(2, 1, 1, 1)
    e = machine(store, blocks=10, samples=50).posterior_mean(x, 0.5, k=3)
    assert (e.mean[0] - e.mean[1]).abs().max() > 1e-3


def test_small_memory_changes_nothing(store, held_out):
    x, t, k = held_out(0.5), 0.5, 3
    means = [
        machine(store, blocks=20, samples=100, memory=memory).posterior_mean(x, t, k=k).mean
        for memory in ("1M", "1G")
    ]
    torch.testing.assert_close(*means, rtol=0, atol=1e-6)


@pytest.mark.parametrize("option", ["blocks", "samples"])
def test_options_below_one_are_refused(store, option):
    with pytest.raises(InputError, match=f"{option}: must be at least 1, got 0"):
        machine(store, **{option: 0})


def test_it_needs_an_index(real_images):
    with pytest.raises(InputError, match="needs a patch index"):
        pi.ScoreMachine(real_images(5, 12)[0], estimator="priority")


def test_progress_is_told(store, held_out):
    told = []
    machine(store, blocks=20, samples=50).posterior_mean(held_out(0.5), 0.5, k=3, progress=told.append)
    assert told[-1] == 1
    assert (np.diff(told) > 0).all()
