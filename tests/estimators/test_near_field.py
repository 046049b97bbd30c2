"""The near field: unique members with exact logits, and all patches when all are asked for."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.estimators import AutoPolicy, ScoreContext
from patchindex.estimators.near import NearField
from patchindex.estimators.neighbours import NeighbourRefiner
from patchindex.exact import ScoreRequest, heaviest, scan

ALL = 10**4
NO_NEIGHBOURS = AutoPolicy(heavy=2.0)  # no patch has twice the weight of its near field


def request_for(store, x, t, k, **settings):
    return ScoreRequest(store.training, store.geometry(k), x, brute.beta_of(t), **settings)


def near_field(store, request, probes, candidates, recalled=(), **policy):
    context = ScoreContext(store, torch.device("cpu"))
    return NearField(context, request, probes, candidates, recalled, AutoPolicy(**policy))


def exact(request):
    return scan(replace(request, dtype=torch.float64))


def flat(state):
    return state.reshape((-1,))


@pytest.mark.parametrize("label", [None, 4])
@pytest.mark.parametrize(("k", "t"), [(3, 0.3), (5, 0.7)])
def test_all_probes_and_candidates_retrieve_all_patches(store, held_out, k, t, label):
    request = request_for(store, held_out(t), t, k, label=label)
    near, truth = near_field(store, request, ALL, 8000, cells=ALL), exact(request)
    for i in range(2):
        state, one = near.image(i).state, flat(truth[i])
        # Patches more than 20 nats below the largest logit are left out.
        torch.testing.assert_close(state.mean(), one.mean(), rtol=0, atol=5e-5)
        torch.testing.assert_close(state.log_weight(), one.log_weight(), rtol=0, atol=5e-5)
        torch.testing.assert_close(state.ess(), one.ess(), rtol=1e-3, atol=0)
        # Negligible patches may be compared once more, for a neighbouring pixel.
        assert state.count.sum() < 1.1 * one.count.sum()
        assert float(state.count.sum() / one.count.sum()) > (0.99 if t > 0.5 else 0.5)


@pytest.mark.parametrize(("probes", "candidates"), [(4, 10), (30, 60)])
def test_members_are_unique_and_of_the_pixels_class(store, held_out, probes, candidates):
    members = (
        near_field(store, request_for(store, held_out(0.4), 0.4, 5), probes, candidates).image(1).members
    )
    geometry = store.geometry(5)
    width = geometry.size[1]
    pairs = np.stack([members.pixel, members.image, members.place])
    assert np.unique(pairs, axis=1).shape == pairs.shape
    for axis, q, j in (
        (geometry.y, members.pixel // width, members.place // width),
        (geometry.x, members.pixel % width, members.place % width),
    ):
        assert np.isin(j, axis.train_positions).all()
        classes = np.array(axis.classes)
        assert (classes[q] == classes[j]).all()


@pytest.mark.parametrize("t", [0.2, 0.6])
def test_the_state_is_the_softmax_of_the_members(store, held_out, t):
    """Also where a neighbouring pixel's patch is the heaviest one, so that earlier sums are scaled down."""
    near = near_field(store, request_for(store, held_out(t), t, 5), 4, 10).image(0)
    pixel, logit = near.members.pixel, near.members.logit.astype(np.float64)
    assert len(pixel) > 10 * len(near.state.weight)  # neighbours' patches, too
    weights = np.exp(logit - near.state.max_logit.numpy()[pixel])
    for power, found in ((1, near.state.weight), (2, near.state.weight_sq)):
        expected = np.bincount(pixel, weights**power, len(found))
        # Logits are float32: 20 with seven digits. Negligible patches are no members.
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_logits_are_those_of_an_exact_scan(store, held_out):
    """Where a single patch holds the whole softmax, its logit is the logarithm of the sum."""
    request = request_for(store, held_out(0.03), 0.03, 5)
    state, truth = near_field(store, request, 20, 30).image(0).state, flat(exact(request)[0])
    narrow = truth.ess() < 1.0001
    found = (state.log_weight() - truth.log_weight())[narrow]
    # Equal if the patch was retrieved, and less if it was missed.
    assert int(narrow.sum()) > 10
    assert float((found.abs() < 1e-2).double().mean()) > 0.5
    assert (found < 1e-2).all()


def test_more_probes_retrieve_more(store, held_out):
    request, masses = request_for(store, held_out(0.4), 0.4, 3), []
    for probes, candidates in ((1, 4), (8, 20), (60, 200)):
        found = near_field(store, request, probes, candidates).image(0).state
        masses.append(float((found.log_weight() - flat(exact(request)[0]).log_weight()).exp().mean()))
    assert masses == sorted(masses)
    assert masses[-1] > 1.5 * masses[0]


@pytest.mark.parametrize(("k", "t", "least"), [(3, 0.2, 0.9), (3, 0.4, 0.9), (5, 0.5, 0.85)])
def test_a_quarter_of_the_lists_holds_most_of_the_weight(store, held_out, k, t, least):
    """Recall without the patches of neighbouring pixels: weight found over the weight of the 60 heaviest."""
    request = request_for(store, held_out(t), t, k)
    found = near_field(store, request, 6, 60, heavy=NO_NEIGHBOURS.heavy).image(0).state
    best = heaviest(replace(request.select(slice(0, 1)), dtype=torch.float64), 60).weight.sum(-1)
    share = (found.log_weight() - flat(exact(request)[0]).log_weight()).exp()
    assert float((share / best).mean()) > least


def test_neighbouring_pixels_share_heavy_patches(store, held_out):
    request = request_for(store, held_out(0.2), 0.2, 5)
    shared = near_field(store, request, 3, 5).image(0).state
    alone = near_field(store, request, 3, 5, heavy=NO_NEIGHBOURS.heavy).image(0).state
    assert (shared.log_weight() >= alone.log_weight() - 1e-9).all()
    assert int(shared.count.sum()) > int(alone.count.sum())


def test_the_heaviest_members_are_kept_for_the_next_step(store, held_out):
    """About as many as asked for, and none that is lighter than one left out."""
    request = request_for(store, held_out(0.4), 0.4, 3)
    context, policy = ScoreContext(store, torch.device("cpu")), AutoPolicy(recalled=7)
    found = NearField(context, request, 20, 50, policy=policy).image(0)
    area = request.x[0, 0].numel()
    refiner = NeighbourRefiner(store.pixels.numpy(), request, NO_NEIGHBOURS)
    pixels = refiner.tables.pixels_of(found.heaviest)
    assert len(np.unique(found.heaviest)) == len(found.heaviest)
    assert (np.diff(refiner.tables.images_of(found.heaviest)) >= 0).all()
    kept, have = (np.bincount(of, minlength=area) for of in (pixels, found.members.pixel))
    assert (kept <= np.minimum(have, 14)).all()
    assert 5 < np.mean(kept) < 12
    nothing = np.full((area, 1), -1)
    for pixel in range(0, area, 17):
        logits = np.sort(found.members.logit[found.members.pixel == pixel])[::-1]
        tried, _, _ = refiner.run(0, nothing, np.arange(area), found.heaviest[pixels == pixel])
        assert (tried.pixel == pixel).all()
        np.testing.assert_array_equal(np.sort(tried.logit)[::-1], logits[: kept[pixel]])


def test_recalled_patches_are_not_searched_again(store, held_out):
    request = request_for(store, held_out(0.4), 0.4, 5)
    before = near_field(store, request, 30, 60)
    found = [before.image(i) for i in range(2)]
    again = near_field(store, request, 30, 60, [near.heaviest for near in found])
    for i, near in enumerate(found):
        new = again.image(i)
        assert new.codes < near.codes / 3
        assert float((new.state.log_weight() - near.state.log_weight()).min()) > -1e-4
        pairs = np.stack([new.members.pixel, new.members.image, new.members.place])
        assert np.unique(pairs, axis=1).shape == pairs.shape
        assert (np.diff(new.members.image) >= 0).all()


def test_some_pixels_have_a_larger_near_field(store, held_out):
    request = request_for(store, held_out(0.4), 0.4, 3)
    near = near_field(store, request, 4, 10)
    found, pixels = near.image(1), np.array([3, 40, 41, 150])
    deeper = near.deeper(1, found, pixels)
    assert set(deeper.members.pixel.tolist()) == set(pixels.tolist())
    assert deeper.codes > 0
    gain = (deeper.state.log_weight() - found.state.log_weight())[pixels]
    assert (gain > -1e-4).all()
    assert float(gain.max()) > 0.01
    truth = flat(exact(request)[1]).log_weight()[pixels]
    assert (deeper.state.log_weight()[pixels] < truth + 1e-4).all()


def test_a_larger_near_field_has_eight_times_the_candidates(store, held_out):
    """Without patches of neighbouring pixels: up to 80, and up to ten that the smaller one had."""
    field = near_field(store, request_for(store, held_out(0.4), 0.4, 3), 4, 10, heavy=NO_NEIGHBOURS.heavy)
    pixels = np.array([3, 40, 41, 150])
    compared = field.deeper(1, field.image(1), pixels).state.count[pixels]
    assert float(compared.double().mean()) > 40
    assert int(compared.max()) <= 90


def test_memory_and_threads_change_nothing(store, held_out):
    states, before = [], torch.get_num_threads()
    try:
        for threads, memory in ((1, 1 << 26), (2, 1 << 26), (2, 1 << 20)):
            torch.set_num_threads(threads)
            request = request_for(store, held_out(0.4), 0.4, 3, memory=memory)
            states.append(near_field(store, request, 20, 50).image(1).state)
    finally:
        torch.set_num_threads(before)
    for other in states[1:]:
        assert torch.equal(states[0].count, other.count)
        torch.testing.assert_close(states[0].mean(), other.mean(), rtol=0, atol=1e-7)


def peak_of(make):
    """Return the peak of the arrays that NumPy allocates, in bytes."""
    make()
    tracemalloc.start()
    try:
        make()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("memory", [1 << 20, 4 << 20, 8 << 20])
@pytest.mark.parametrize(("probes", "candidates"), [(150, 50), (20, 2000)])
def test_a_search_stays_within_its_memory(store, held_out, memory, probes, candidates):
    """Beside the ids of all pixels; with less memory it searches for fewer pixels at once."""
    request = request_for(store, held_out(0.4), 0.4, 3, memory=memory)
    found = 8 * request.x[:, 0].numel() * candidates
    whole = 12 * request.x[:, 0].numel() * (2 * (probes + candidates) + 500)  # for all pixels at once
    took = peak_of(lambda: near_field(store, request, probes, candidates)) - found
    # The best items take half of the memory, and their ids a third of that; lists and windows come on top.
    assert took < 0.7 * memory + 1e6
    assert took > min(memory, whole) / 8  # the threads need not search at the same time


def test_fewer_pixels_have_a_larger_near_field_in_less_memory(store, held_out):
    def most(memory, candidates):
        return near_field(
            store, request_for(store, held_out(0.4), 0.4, 3, memory=memory), 2, candidates
        ).most_deeper

    # A pixel has eight times as many candidates, of 64 bytes each.
    assert most(1 << 20, 20) == (1 << 20) // (8 * 64 * 20) > 100
    assert most(1 << 10, 20) == 1


@pytest.fixture
def grey(tmp_path):
    return pi.build_index(np.full((70, 14, 14, 1), 9, np.uint8), tmp_path / "grey.zarr", scales=(3,))


def test_equal_patches_are_left_to_the_sample(grey, held_out):
    """A patch is retrieved only if it is better than the first patch that is left out."""
    found = near_field(grey, request_for(grey, held_out(0.4), 0.4, 3), 2, 5).image(0)
    assert len(found.members.pixel) == 0
    assert (found.state.weight == 0).all()


@pytest.mark.parametrize(
    "options", [{}, {"probes": 2, "candidates": 5, "policy": AutoPolicy(cost_limit=np.inf)}]
)
def test_auto_estimates_equal_patches(grey, held_out, options):
    e = pi.ScoreMachine(grey, estimator="auto", **options).posterior_mean(held_out(0.4), 0.4, k=3)
    torch.testing.assert_close(e.mean, torch.full_like(e.mean, 9 / 127.5 - 1))
    assert (e.captured_mass == 1).all()
