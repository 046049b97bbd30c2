"""`auto`: within the tolerance everywhere, and exact where drawing does not pay."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError
from patchindex.estimators import auto
from patchindex.exact import scan


def exact_mean(store, x, t, k, label=None):
    beta = brute.beta_of(t)
    state = scan(
        store.training, store.geometry(k), x, (1 - beta) ** 0.5, beta, label=label, dtype=torch.float64
    )
    return state.mean().permute(0, 3, 1, 2)


def machine(store, **options):
    return pi.ScoreMachine(store, estimator="auto", **options)


@pytest.fixture
def drawing_is_cheap(monkeypatch):
    """Forty images are scanned faster than drawn from: pretend otherwise."""
    for name in ("LIST", "CODE", "PATCH"):
        monkeypatch.setattr(auto, name, getattr(auto, name) / 1000)


@pytest.mark.parametrize("label", [None, 4])
def test_few_images_are_scanned_at_once(store, held_out, label):
    x = held_out(0.5)
    e = machine(store).posterior_mean(x, 0.5, k=3, label=label)
    assert e.codes_scanned == 0
    assert e.exact_pixels == e.stderr.numel()
    assert (e.stderr == 0).all()
    assert (e.captured_mass == 1).all()
    # The exact kernel's float32 against float64.
    torch.testing.assert_close(e.mean.double(), exact_mean(store, x, 0.5, 3, label), rtol=0, atol=2e-5)


@pytest.mark.parametrize("tolerance", [0.05, 0.01])
@pytest.mark.parametrize(("k", "t"), [(3, 0.3), (5, 0.8)])
def test_pixels_are_drawn_for_until_they_are_within_the_tolerance(
    store, held_out, drawing_is_cheap, k, t, tolerance
):
    x = held_out(t)
    e = machine(store, tolerance=tolerance, blocks=40, samples=100).posterior_mean(x, t, k=k, seed=1)
    assert e.codes_scanned > 0
    assert (e.stderr <= tolerance).all()
    error = (e.mean - exact_mean(store, x, t, k)).square().mean(1).sqrt()
    # Pixels are accepted by their standard errors, so those that seem too good are among them.
    assert (error <= 2 * e.stderr + 0.1 * tolerance).double().mean() > 0.85
    assert error.square().mean().sqrt() < 1.5 * tolerance


def test_what_does_not_get_there_is_exact(store, held_out, monkeypatch):
    """Drawing is cheap at first, and twice the budget is not any more."""
    costs = iter([0.0, 1e9])
    monkeypatch.setattr(auto.Auto, "_draw_seconds", lambda *args: next(costs))
    x = held_out(0.5)
    e = machine(store, tolerance=0.01, blocks=40, samples=50).posterior_mean(x, 0.5, k=3)
    exact = e.stderr == 0
    assert int(exact.sum()) >= e.exact_pixels > 0  # others may have drawn everything there is
    truth = exact_mean(store, x, 0.5, 3)
    off = (e.mean - truth).abs().amax(1)
    assert off[exact].max() < 2e-5
    assert (e.stderr <= 0.01).all()
    assert (e.captured_mass[exact] == 1).all()


def test_a_loose_tolerance_costs_less(store, held_out, drawing_is_cheap):
    x = held_out(0.5)
    spent = [
        machine(store, tolerance=tolerance, blocks=8, samples=50).posterior_mean(x, 0.5, k=3).codes_scanned
        for tolerance in (1.0, 0.03, 0.003)
    ]
    assert spent == sorted(spent)
    assert spent[0] < spent[2]


def test_equal_seeds_give_equal_means_in_any_batch(store, held_out, drawing_is_cheap):
    x = held_out(0.5)
    m = machine(store, tolerance=0.02, blocks=8, samples=50)
    both = m.posterior_mean(x, 0.5, k=3, seed=3)
    second = m.posterior_mean(x[1:], 0.5, k=3, seed=3, samples=[1])
    torch.testing.assert_close(second.mean, both.mean[1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("tolerance", [0, -0.1, np.inf, np.nan])
def test_a_tolerance_that_is_none_is_refused(store, tolerance):
    with pytest.raises(InputError, match="tolerance: must be a positive number"):
        machine(store, tolerance=tolerance)


def test_all_pixels_are_told_when_done(store, held_out, drawing_is_cheap):
    told = []
    machine(store, blocks=8, samples=50).posterior_mean(held_out(0.5), 0.5, k=3, progress=told.append)
    assert told[-1] == 1
    assert (np.diff(told) >= 0).all()
