"""The near field: right members with exact logits, none twice, and all there are when all is asked for."""

from __future__ import annotations

from dataclasses import replace

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.estimators.base import ScoreContext
from patchindex.estimators.near import NearField
from patchindex.exact import ScoreRequest, scan
from patchindex.geometry import Geometry

ALL = 10**4


def field(store, x, t, k, probes, candidates, label=None, memory=1 << 26):
    beta = brute.beta_of(t)
    data = ScoreContext(store, torch.device("cpu"))
    query = ScoreRequest(store.training, store.geometry(k), x, beta, label=label, memory=memory)
    return NearField(data, query, probes, candidates), query


def exact(store, query):
    return scan(replace(query, dtype=torch.float64))


@pytest.mark.parametrize("label", [None, 4])
@pytest.mark.parametrize(("k", "t"), [(3, 0.3), (5, 0.7)])
def test_all_probes_and_candidates_are_everything(store, held_out, monkeypatch, k, t, label):
    monkeypatch.setattr("patchindex.estimators.near.CELLS", ALL)
    near, query = field(store, held_out(t), t, k, ALL, 8000, label)
    truth = exact(store, query)
    for i in range(2):
        state = near.image(i).state
        one = truth[i].reshape((-1,))
        # What is more than 20 nats below the largest logit is left out.
        torch.testing.assert_close(state.mean(), one.mean(), rtol=0, atol=5e-5)
        torch.testing.assert_close(state.log_weight(), one.log_weight(), rtol=0, atol=5e-5)
        # Negligible ones may be compared once more where they are tried for the pixels around.
        assert state.count.sum() < 1.1 * one.count.sum()
        assert float(state.count.sum() / one.count.sum()) > (0.99 if t > 0.5 else 0.5)


@pytest.mark.parametrize(("probes", "candidates"), [(4, 10), (30, 60)])
def test_members_are_unique_and_of_the_pixels_class(store, held_out, probes, candidates):
    near, _ = field(store, held_out(0.4), 0.4, 5, probes, candidates)
    geometry: Geometry = store.geometry(5)
    height, width = geometry.size
    members = near.image(1).members
    pairs = (
        members.pixel.astype(np.int64) * len(store.pixels) + members.image
    ) * height * width + members.place
    assert len(np.unique(pairs)) == len(pairs)
    for axis, q, j in (
        (geometry.y, members.pixel // width, members.place // width),
        (geometry.x, members.pixel % width, members.place % width),
    ):
        assert np.isin(j, axis.train_positions).all()
        classes = np.array(axis.classes)
        assert (classes[q] == classes[j]).all()


def test_logits_are_those_of_an_exact_scan(store, held_out):
    """A pixel whose whole softmax is one member's: its logit is the sum's."""
    near, query = field(store, held_out(0.03), 0.03, 5, 20, 30)
    truth = exact(store, query)
    narrow = truth.ess()[0].reshape(-1) < 1.0001
    state = near.image(0).state
    found = (state.log_weight() - truth[0].reshape((-1,)).log_weight())[narrow]
    # Retrieved, so equal; or missed, and then the sum is less.
    assert int(narrow.sum()) > 10
    assert float((found.abs() < 1e-2).double().mean()) > 0.5
    assert (found < 1e-2).all()


def test_more_is_retrieved_with_more_probes(store, held_out):
    masses = []
    for probes, candidates in ((1, 4), (8, 20), (60, 200)):
        near, query = field(store, held_out(0.4), 0.4, 3, probes, candidates)
        mass = near.image(0).state.log_weight() - exact(store, query)[0].reshape((-1,)).log_weight()
        masses.append(float(mass.exp().mean()))
    assert masses == sorted(masses)
    assert masses[-1] > 1.5 * masses[0]


def test_pixels_learn_from_those_around(store, held_out, monkeypatch):
    near, _ = field(store, held_out(0.2), 0.2, 5, 3, 5)
    spread = near.image(0).state
    monkeypatch.setattr("patchindex.estimators.neighbours.HEAVY", 2.0)
    alone = near.image(0).state
    assert (spread.log_weight() >= alone.log_weight() - 1e-9).all()
    assert int(spread.count.sum()) > int(alone.count.sum())


def test_the_heaviest_are_kept_for_the_next_step(store, held_out, monkeypatch):
    """About as many as asked for, and none that is lighter than one left out."""
    monkeypatch.setattr("patchindex.estimators.neighbours.RECALLED", 7)
    near, _ = field(store, held_out(0.4), 0.4, 3, 20, 50)
    found = near.image(0)
    area = held_out(0.4)[0, 0].numel()
    assert len(np.unique(found.heaviest)) == len(found.heaviest)
    assert (np.diff(near._refiner.tables.images_of(found.heaviest)) >= 0).all()
    kept = np.bincount(near._refiner.tables.pixels_of(found.heaviest), minlength=area)
    have = np.bincount(found.members.pixel, minlength=area)
    assert (kept <= np.minimum(have, 14)).all()
    assert 5 < np.mean(kept) < 12
    for pixel in range(0, area, 17):
        logits = np.sort(found.members.logit[found.members.pixel == pixel])[::-1]
        again, _ = field(store, held_out(0.4), 0.4, 3, 1, 1)
        again._ids[:] = -1
        again._recalled = [found.heaviest[near._refiner.tables.pixels_of(found.heaviest) == pixel]]
        monkeypatch.setattr("patchindex.estimators.neighbours.HEAVY", 2.0)
        tried = again.image(0).members
        assert (tried.pixel == pixel).all()
        np.testing.assert_array_equal(np.sort(tried.logit)[::-1], logits[: kept[pixel]])


def test_what_was_found_before_need_not_be_found_again(store, held_out):
    x, t = held_out(0.4), 0.4
    before, query = field(store, x, t, 5, 30, 60)
    found = [before.image(i) for i in range(2)]
    data = ScoreContext(store, torch.device("cpu"))
    again = NearField(data, query, 30, 60, [near.heaviest for near in found])
    for i, near in enumerate(found):
        new = again.image(i)
        assert new.codes < near.codes / 3
        assert float((new.state.log_weight() - near.state.log_weight()).min()) > -1e-4
        pairs = np.stack([new.members.pixel, new.members.image, new.members.place])
        assert np.unique(pairs, axis=1).shape == pairs.shape
        assert (np.diff(new.members.image) >= 0).all()


def test_some_pixels_have_a_larger_near_field(store, held_out):
    near, query = field(store, held_out(0.4), 0.4, 3, 4, 10)
    found = near.image(1)
    pixels = np.array([3, 40, 41, 150])
    deeper = near.deeper(1, found, pixels, 8)
    assert set(deeper.members.pixel.tolist()) == set(pixels.tolist())
    assert deeper.codes > 0
    gain = (deeper.state.log_weight() - found.state.log_weight())[pixels]
    truth = exact(store, query)[1].reshape((-1,)).log_weight()[pixels]
    assert (gain > -1e-4).all()
    assert float(gain.max()) > 0.01
    assert (deeper.state.log_weight()[pixels] < truth + 1e-4).all()


def test_groups_and_threads_change_nothing(store, held_out):
    states = []
    before = torch.get_num_threads()
    try:
        for threads, memory in ((1, 1 << 26), (2, 1 << 26), (2, 1 << 20)):
            torch.set_num_threads(threads)
            near, _ = field(store, held_out(0.4), 0.4, 3, 20, 50, memory=memory)
            states.append(near.image(1).state)
    finally:
        torch.set_num_threads(before)
    for other in states[1:]:
        assert torch.equal(states[0].count, other.count)
        torch.testing.assert_close(states[0].mean(), other.mean(), rtol=0, atol=1e-7)


def test_patches_that_are_all_alike_are_left_to_the_sample(tmp_path, held_out):
    """None of them is better than the first that is left out."""
    store = pi.build_index(np.full((70, 14, 14, 1), 9, np.uint8), tmp_path / "grey.zarr", scales=(3,))
    near, query = field(store, held_out(0.4), 0.4, 3, 2, 5)
    found = near.image(0)
    assert len(found.members.pixel) == 0
    assert (found.state.weight == 0).all()
    e = pi.ScoreMachine(store, estimator="auto").posterior_mean(query.x, 0.4, k=3)
    torch.testing.assert_close(e.mean, torch.full_like(e.mean, 9 / 127.5 - 1))


def test_auto_draws_from_patches_that_are_all_alike(tmp_path, held_out, monkeypatch):
    monkeypatch.setattr("patchindex.estimators.auto.WORTH", np.inf)
    store = pi.build_index(np.full((70, 14, 14, 1), 9, np.uint8), tmp_path / "grey.zarr", scales=(3,))
    e = pi.ScoreMachine(store, estimator="auto", probes=2, candidates=5).posterior_mean(
        held_out(0.4), 0.4, k=3
    )
    torch.testing.assert_close(e.mean, torch.full_like(e.mean, 9 / 127.5 - 1))
    assert (e.captured_mass == 1).all()  # all of it was sampled
