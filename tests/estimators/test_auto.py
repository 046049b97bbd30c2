"""`auto`: within the tolerance everywhere, and exact where drawing does not pay."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError
from patchindex.estimators import auto
from patchindex.exact import ScoreRequest, scan


def exact_mean(store, x, t, k, label=None):
    beta = brute.beta_of(t)
    state = scan(ScoreRequest(store.training, store.geometry(k), x, beta, label=label, dtype=torch.float64))
    return state.mean().permute(0, 3, 1, 2)


def machine(store, **options):
    return pi.ScoreMachine(store, estimator="auto", **options)


@pytest.fixture
def scans_are_dear(monkeypatch):
    """Forty images are scanned faster than anything is retrieved: pretend otherwise."""
    monkeypatch.setattr(auto, "WORTH", np.inf)
    monkeypatch.setattr(auto, "FIRST_CELLS", 2)


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


@pytest.mark.parametrize("label", [None, 4])
@pytest.mark.parametrize("tolerance", [0.05, 0.01])
@pytest.mark.parametrize(("k", "t"), [(3, 0.3), (5, 0.8)])
def test_the_sample_grows_until_pixels_are_within_the_tolerance(
    store, held_out, scans_are_dear, k, t, tolerance, label
):
    x = held_out(t)
    e = machine(store, tolerance=tolerance, probes=10, candidates=20).posterior_mean(
        x, t, k=k, seed=1, label=label
    )
    assert e.codes_scanned > 0
    assert (e.stderr <= tolerance).all()
    assert (e.captured_mass >= 0).all()
    assert (e.captured_mass <= 1).all()
    # Forty images are two tiles, so that errors are known of eight cells at most: a rough guess.
    error = (e.mean - exact_mean(store, x, t, k, label)).square().mean(1).sqrt()
    assert error.square().mean().sqrt() < 1.5 * tolerance


@pytest.fixture(scope="module")
def larger(real_images, tmp_path_factory):
    """Six hundred images: enough cells for standard errors."""
    images, _ = real_images(600, 14)
    return pi.build_index(images, tmp_path_factory.mktemp("larger") / "s.zarr", scales=(3, 5))


@pytest.mark.parametrize(("k", "t"), [(3, 0.2), (5, 0.5), (5, 0.9)])
def test_standard_errors_are_honest(larger, held_out, monkeypatch, k, t):
    monkeypatch.setattr(auto, "WORTH", np.inf)
    x = held_out(t)
    e = machine(larger, tolerance=0.02, probes=20, candidates=40).posterior_mean(x, t, k=k)
    error = (e.mean - exact_mean(larger, x, t, k)).square().mean(1).sqrt()
    assert (e.stderr <= 0.02).all()
    assert (error <= 2 * e.stderr + 0.001).double().mean() >= 0.9
    # The pixels of an image share their sample, so one draw says less than their number.
    assert error.square().mean().sqrt() < 1.6 * e.stderr.square().mean().sqrt() + 1e-4


def test_single_pixels_get_more_than_others(larger, held_out, monkeypatch):
    """All growing is for single pixels; with `MOST` 0 they are computed exactly at once."""
    monkeypatch.setattr(auto, "WORTH", np.inf)
    seconds = auto.Auto._seconds
    monkeypatch.setattr(auto.Auto, "_seconds", lambda *args: seconds(*args) * 1e9 ** (args[-1] > 1))
    monkeypatch.setattr(auto, "FIRST_CELLS", 24)
    monkeypatch.setattr(auto, "LEAST_TILES", 2)
    x = held_out(0.5)
    truth, exact = exact_mean(larger, x, 0.5, 5), []
    for most in (0.0, 0.95):
        monkeypatch.setattr(auto, "MOST", most)
        e = machine(larger, tolerance=0.01, probes=4, candidates=10).posterior_mean(x, 0.5, k=5)
        off = (e.mean - truth).square().mean(1).sqrt()
        assert (e.stderr <= 0.01).all()
        assert int((e.stderr == 0).sum()) == e.exact_pixels
        assert (off[e.stderr == 0] < 2e-5).all()
        assert (e.captured_mass[e.stderr == 0] == 1).all()
        # What was spent on them before counts too.
        everything = e.exact_pixels * len(larger.training) * larger.geometry(5).patches_per_image
        assert e.patches_evaluated > everything
        assert off.square().mean().sqrt() < 0.015
        exact.append(e.exact_pixels)
    assert exact[0] > 2 * exact[1]


def test_a_tight_tolerance_costs_more(store, held_out, scans_are_dear):
    x = held_out(0.5)
    spent = [
        machine(store, tolerance=tolerance, probes=4, candidates=10)
        .posterior_mean(x, 0.5, k=3)
        .patches_evaluated
        for tolerance in (1.0, 0.03, 0.003)
    ]
    assert spent == sorted(spent)
    assert spent[0] < spent[2]


def test_equal_seeds_give_equal_means_in_any_batch(larger, held_out, monkeypatch):
    monkeypatch.setattr(auto, "WORTH", np.inf)
    x = held_out(0.5)
    m = machine(larger, tolerance=0.02, probes=8, candidates=20)
    both = m.posterior_mean(x, 0.5, k=3, seed=3)
    second = m.posterior_mean(x[1:], 0.5, k=3, seed=3, image_ids=[1])
    torch.testing.assert_close(second.mean, both.mean[1:], rtol=0, atol=1e-5)
    other = m.posterior_mean(x, 0.5, k=3, seed=4)
    assert (other.mean - both.mean).abs().max() > 1e-3


def test_a_step_finds_less_where_the_one_before_was(larger, held_out, monkeypatch):
    """At the same scale and for the same label; and it is as good as without."""
    monkeypatch.setattr(auto, "WORTH", np.inf)
    m = machine(larger, tolerance=0.02, probes=16, candidates=40)
    cache = {}
    x, later = held_out(0.5), held_out(0.48)
    first = m.posterior_mean(x, 0.5, k=3, cache=cache, image_ids=[4, 9])
    assert set(cache) == {4, 9}
    other = m.posterior_mean(later, 0.48, k=5, cache=dict(cache), image_ids=[4, 9])
    unknown = m.posterior_mean(later, 0.48, k=3, cache=dict(cache), image_ids=[4, 8])
    again = m.posterior_mean(later, 0.48, k=3, cache=cache, image_ids=[4, 9])
    alone = m.posterior_mean(later, 0.48, k=3, image_ids=[4, 9])
    assert unknown.codes_scanned == alone.codes_scanned
    much_later = held_out(0.25)
    noise_is_another = m.posterior_mean(much_later, 0.25, k=3, cache=dict(cache), image_ids=[4, 9])
    assert noise_is_another.codes_scanned == m.posterior_mean(much_later, 0.25, k=3).codes_scanned
    assert again.codes_scanned < 0.8 * min(first.codes_scanned, alone.codes_scanned, other.codes_scanned)
    error = (again.mean - exact_mean(larger, later, 0.48, 3)).square().mean(1).sqrt()
    assert (again.stderr <= 0.02).all()
    assert (error <= 2 * again.stderr + 0.001).double().mean() >= 0.9


@pytest.mark.parametrize("worth_it", [0.0, np.inf])
def test_hard_pixels_get_a_larger_near_field(larger, held_out, monkeypatch, worth_it):
    """Each pixel that is left, or none."""
    monkeypatch.setattr(auto, "WORTH", np.inf)
    monkeypatch.setattr(auto, "WORTH_IT", worth_it)
    monkeypatch.setattr(auto, "FIRST_CELLS", 24)
    monkeypatch.setattr(auto, "LEAST_TILES", 2)
    seconds = auto.Auto._seconds
    monkeypatch.setattr(auto.Auto, "_seconds", lambda *args: seconds(*args) * 1e9 ** (args[-1] > 1))
    deeper = []
    real = auto.NearField.deeper

    def spy(field, i, near, pixels, times):
        deeper.append(len(pixels))
        return real(field, i, near, pixels, times)

    monkeypatch.setattr(auto.NearField, "deeper", spy)
    x = held_out(0.5)
    e = machine(larger, tolerance=0.01, probes=4, candidates=10).posterior_mean(x, 0.5, k=5)
    assert bool(deeper) == (worth_it == 0)
    error = (e.mean - exact_mean(larger, x, 0.5, 5)).square().mean(1).sqrt()
    assert (e.stderr <= 0.01).all()
    assert (error <= 2 * e.stderr + 0.001).double().mean() >= 0.9
    assert ((e.captured_mass >= 0) & (e.captured_mass <= 1)).all()


def test_a_batch_beyond_the_memory_is_taken_in_parts(larger, held_out, monkeypatch):
    monkeypatch.setattr(auto, "WORTH", np.inf)
    x = torch.cat([held_out(0.5), held_out(0.6), held_out(0.4)])
    numbers = [5, 3, 9, 1, 0, 2]
    means = []
    for memory in (1 << 28, 4 * 8 * 20 * 14 * 14 * 2):  # two images at a time
        m = machine(larger, tolerance=0.02, probes=8, candidates=20, memory=memory)
        means.append(m.posterior_mean(x, 0.5, k=3, seed=3, image_ids=numbers).mean)
    torch.testing.assert_close(*means, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tolerance", [0, -0.1, np.inf, np.nan])
def test_a_tolerance_that_is_none_is_refused(store, tolerance):
    with pytest.raises(InputError, match="tolerance: must be a number above 0"):
        machine(store, tolerance=tolerance)


def test_all_pixels_are_told_when_done(store, held_out, scans_are_dear):
    told = []
    machine(store, probes=8, candidates=50).posterior_mean(
        held_out(0.5), 0.5, k=3, progress=lambda _, done, total: told.append(done / total)
    )
    assert told[-1] == 1
    assert (np.diff(told) >= 0).all()


def test_what_float32_cannot_tell_apart_is_exact(larger, held_out, monkeypatch):
    monkeypatch.setattr(auto, "WORTH", np.inf)
    x = held_out(0.5)[:1].clone().requires_grad_() * 1e7
    e = machine(larger).posterior_mean(x, 0.01, k=3)
    assert e.exact_pixels == e.stderr.numel()
    assert e.mean.isfinite().all()
