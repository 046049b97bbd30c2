"""`auto`: within the tolerance everywhere, and exact where sampling does not pay."""

from __future__ import annotations

from dataclasses import replace

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.estimators import AutoPolicy, ScoreContext, make_estimator
from patchindex.exact import ScoreRequest, heaviest, scan

# So few images are scanned faster than anything is retrieved: sample all the same.
SAMPLED = AutoPolicy(cost_limit=np.inf)
SMALL_SAMPLE = AutoPolicy(cost_limit=np.inf, first_strata=2)


def exact_mean(store, x, t, k, label=None):
    request = ScoreRequest(
        store.training, store.geometry(k), x, brute.beta_of(t), label=label, dtype=torch.float64
    )
    return scan(request).mean().permute(0, 3, 1, 2)


def machine(store, **options):
    return pi.ScoreMachine(store, estimator="auto", **options)


def assert_honest(estimate, truth, tolerance):
    """Nine tenths of the pixels are within two standard errors, which are within the tolerance."""
    error = (estimate.mean - truth).square().mean(1).sqrt()
    assert (estimate.stderr <= tolerance).all()
    assert (error <= 2 * estimate.stderr + 0.001).double().mean() >= 0.9
    assert ((estimate.captured_mass >= 0) & (estimate.captured_mass <= 1)).all()
    return error


@pytest.mark.parametrize("label", [None, 4])
def test_few_images_are_computed_exactly(store, held_out, label):
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
def test_the_sample_grows_until_pixels_are_within_the_tolerance(store, held_out, k, t, tolerance, label):
    x = held_out(t)
    m = machine(store, tolerance=tolerance, probes=10, candidates=20, policy=SMALL_SAMPLE)
    e = m.posterior_mean(x, t, k=k, seed=1, label=label)
    assert e.codes_scanned > 0
    if tolerance == 0.05 and label is None:  # other cases need all strata of the forty images
        assert (e.stderr > 0).any()
    assert (e.stderr <= tolerance).all()
    assert ((e.captured_mass >= 0) & (e.captured_mass <= 1)).all()
    # Forty images are two tiles, so the error comes from eight strata at most: a rough guess.
    error = (e.mean - exact_mean(store, x, t, k, label)).square().mean(1).sqrt()
    assert error.square().mean().sqrt() < 1.5 * tolerance


@pytest.fixture(scope="module")
def larger(real_images, tmp_path_factory):
    """Six hundred images: enough strata for standard errors."""
    images, _ = real_images(600, 14)
    return pi.build_index(images, tmp_path_factory.mktemp("larger") / "s.zarr", scales=(3, 5))


@pytest.mark.parametrize(("k", "t"), [(3, 0.2), (5, 0.5), (5, 0.9)])
def test_standard_errors_are_honest(larger, held_out, k, t):
    x = held_out(t)
    m = machine(larger, tolerance=0.02, probes=20, candidates=40, policy=SAMPLED)
    e = m.posterior_mean(x, t, k=k)
    assert (e.stderr > 0).any()  # not all pixels are computed exactly
    error = assert_honest(e, exact_mean(larger, x, t, k), 0.02)
    # The pixels of an image share their sample, so one draw says less than their number.
    assert error.square().mean().sqrt() < 1.6 * e.stderr.square().mean().sqrt() + 1e-4


def test_single_pixels_are_sampled_further_or_computed_exactly(larger, held_out):
    x = held_out(0.5)
    truth, exact = exact_mean(larger, x, 0.5, 5), []
    for most in (0.0, 0.95):
        policy = AutoPolicy(
            cost_limit=np.inf, first_strata=24, pixel_strata=2, worth_deeper=np.inf, largest_sample=most
        )
        m = machine(larger, tolerance=0.01, probes=4, candidates=10, policy=policy)
        e = m.posterior_mean(x, 0.5, k=5)
        off = assert_honest(e, truth, 0.01)
        assert int((e.stderr == 0).sum()) == e.exact_pixels
        assert (off[e.stderr == 0] < 2e-5).all()
        assert (e.captured_mass[e.stderr == 0] == 1).all()
        # Patches that were sampled for exact pixels before count too.
        everything = e.exact_pixels * len(larger.training) * larger.geometry(5).patches_per_image
        assert e.patches_evaluated > everything
        assert off.square().mean().sqrt() < 0.015
        exact.append(e.exact_pixels)
    assert exact[0] > 2 * exact[1]


def test_hard_pixels_get_a_larger_near_field(larger, held_out):
    x, codes = held_out(0.5), []
    for worth in (0.0, np.inf):  # for every pixel that is left, and for none
        policy = AutoPolicy(cost_limit=np.inf, first_strata=24, pixel_strata=2, worth_deeper=worth)
        m = machine(larger, tolerance=0.01, probes=4, candidates=10, policy=policy)
        e = m.posterior_mean(x, 0.5, k=5)
        assert_honest(e, exact_mean(larger, x, 0.5, 5), 0.01)
        codes.append(e.codes_scanned)
    assert codes[0] > 2 * codes[1]


@pytest.mark.parametrize(
    ("tolerance", "options", "size"),
    [
        (1.0, {}, (10, 20)),
        (0.02, {}, (20, 40)),
        (0.005, {}, (40, 80)),
        (1.0, {"probes": 30}, (30, 20)),
        (1.0, {"candidates": 30}, (10, 30)),
    ],
)
def test_a_coarse_tolerance_gets_a_smaller_near_field(larger, held_out, tolerance, options, size):
    """Half the size for twice 0.01, and a quarter at least."""
    x, policy = held_out(0.5), replace(SAMPLED, probes=40, candidates=80)
    asked = dict(zip(("probes", "candidates"), size, strict=True))
    found, expected = (
        machine(larger, tolerance=tolerance, policy=policy, **each).posterior_mean(x, 0.5, k=3)
        for each in (options, asked)
    )
    assert found.codes_scanned == expected.codes_scanned > 0
    assert torch.equal(found.mean, expected.mean)


def test_the_default_sizes_of_near_fields_without_a_curve():
    sizes = [AutoPolicy().untuned_size(tolerance) for tolerance in (0.001, 0.01, 0.02, 0.04, 9.0)]
    assert sizes == [(n, n) for n in (1024, 1024, 512, 256, 256)]


def test_a_coarse_tolerance_is_estimated_where_a_fine_one_is_exact(larger, held_out):
    x = held_out(0.5)
    limits = np.geomspace(0.01, 1e4, 60)
    least = [
        next(
            limit
            for limit in limits
            if machine(larger, tolerance=tolerance, policy=AutoPolicy(cost_limit=limit))
            .posterior_mean(x[:1], 0.5, k=3)
            .codes_scanned
        )
        for tolerance in (0.04, 0.01)
    ]
    # The near field is a quarter; the rest, .7 near fields, stays. Limits are 1.26 apart.
    assert least[1] / least[0] == pytest.approx(1.7 / 0.95, rel=0.3)


def test_a_tight_tolerance_costs_more(store, held_out):
    x = held_out(0.5)
    spent = [
        machine(store, tolerance=tolerance, probes=4, candidates=10, policy=SMALL_SAMPLE)
        .posterior_mean(x, 0.5, k=3)
        .patches_evaluated
        for tolerance in (1.0, 0.03, 0.003)
    ]
    assert spent == sorted(spent)
    assert spent[0] < spent[2]


def test_equal_seeds_give_equal_means_in_any_batch(larger, held_out):
    x = held_out(0.5)
    m = machine(larger, tolerance=0.02, probes=8, candidates=20, policy=SAMPLED)
    both = m.posterior_mean(x, 0.5, k=3, seed=3)
    second = m.posterior_mean(x[1:], 0.5, k=3, seed=3, image_ids=[1])
    torch.testing.assert_close(second.mean, both.mean[1:], rtol=0, atol=1e-5)
    other = m.posterior_mean(x, 0.5, k=3, seed=4)
    assert (other.mean - both.mean).abs().max() > 1e-3


def test_a_step_reuses_the_heavy_patches_of_the_step_before(larger, held_out):
    """Only at the same scale, for the same images, and at nearly the same noise."""
    m = machine(larger, tolerance=0.02, probes=16, candidates=40, policy=SAMPLED)
    cache = {}
    x, later = held_out(0.5), held_out(0.48)
    first = m.posterior_mean(x, 0.5, k=3, cache=cache, image_ids=[4, 9])
    assert set(cache) == {4, 9}
    other_scale = m.posterior_mean(later, 0.48, k=5, cache=dict(cache), image_ids=[4, 9])
    other_images = m.posterior_mean(later, 0.48, k=3, cache=dict(cache), image_ids=[4, 8])
    again = m.posterior_mean(later, 0.48, k=3, cache=cache, image_ids=[4, 9])
    alone = m.posterior_mean(later, 0.48, k=3, image_ids=[4, 9])
    assert other_images.codes_scanned == alone.codes_scanned
    much_later = held_out(0.25)
    other_noise = m.posterior_mean(much_later, 0.25, k=3, cache=dict(cache), image_ids=[4, 9])
    assert other_noise.codes_scanned == m.posterior_mean(much_later, 0.25, k=3).codes_scanned
    others = min(first.codes_scanned, alone.codes_scanned, other_scale.codes_scanned)
    assert again.codes_scanned < 0.8 * others
    assert_honest(again, exact_mean(larger, later, 0.48, 3), 0.02)


def test_a_batch_beyond_the_memory_is_taken_in_parts(larger, held_out):
    x = torch.cat([held_out(0.5), held_out(0.6), held_out(0.4)])
    means = []
    for memory in (1 << 28, 4 * 8 * 20 * 14 * 14 * 2):  # two images at a time
        m = machine(larger, tolerance=0.02, probes=8, candidates=20, memory=memory, policy=SAMPLED)
        means.append(m.posterior_mean(x, 0.5, k=3, seed=3, image_ids=[5, 3, 9, 1, 0, 2]).mean)
    torch.testing.assert_close(*means, rtol=0, atol=1e-5)


def test_a_policy_is_part_of_the_settings_as_plain_data(store):
    options = machine(store, policy=SAMPLED).settings["options"]
    assert options["policy"]["cost_limit"] == np.inf


def test_the_relative_error_of_weights_is_the_error_of_their_sum(larger, held_out):
    x, every = held_out(0.6), [torch.arange(14 * 14)] * 2
    context = ScoreContext(larger, torch.device("cpu"))
    options = {"tolerance": 0.05, "probes": 4, "candidates": 10, "policy": SAMPLED}
    request = ScoreRequest(larger.training, larger.geometry(3), x, brute.beta_of(0.6), pixels=every)
    found = make_estimator("auto", context, **options).heaviest(request, 1)
    table = heaviest(request, 1)
    # The heaviest patch is the same where it was retrieved; its weight is off by the error of the sum.
    same = (found.image == table.image) & (found.place == table.place)
    off = (found.weight / table.weight - 1)[same]
    stated = found.relative_error.unsqueeze(-1)[same]
    assert same.double().mean() > 0.5
    # The pixels of an image share their sample, so one draw says less than their number.
    assert 0.4 < float((off.square().mean() / stated.square().mean()).sqrt()) < 1.6


def test_the_patches_of_a_larger_near_field_are_named(larger, held_out):
    x, pixels, shares = held_out(0.2), [(y, x) for y in range(14) for x in range(0, 14, 3)], []
    for worth in (0.0, np.inf):  # a larger near field for every pixel that is left, and for none
        policy = AutoPolicy(cost_limit=np.inf, first_strata=4, worth_deeper=worth, heavy=2.0)
        m = machine(larger, tolerance=0.01, probes=1, candidates=4, policy=policy)
        found = m.explain(x, 0.2, pixels, k=5, top=8)
        truth = m.exact().explain(x, 0.2, pixels, k=5, top=1)
        mine, heaviest_one = (np.stack([each.image, each.y, each.x]) for each in (found, truth))
        is_named = (mine == heaviest_one).all(0).any(1)
        shares.append(is_named[truth.weight[:, 0] > 0.2].mean())
        np.testing.assert_allclose(found.weight.sum(1) + found.rest, 1, rtol=0, atol=1e-9)
    assert shares[0] > shares[1] + 0.1
