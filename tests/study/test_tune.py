"""Calibration: what is measured agrees with brute force, is kept in the store, and is what estimators use."""

from __future__ import annotations

import shutil

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError, SourceNotFoundError
from patchindex.estimators import auto
from patchindex.estimators.curve import MOVES, NearPoint, OperatingCurve
from patchindex.softmax import SoftmaxState
from patchindex.study import tune as tuning

NOTHING = (0.0,) * len(MOVES)
POINTS, LARGEST = ((2, 4), (16, 64)), (32, 128)


@pytest.fixture(scope="module", params=["ELS", "bbELS"])
def tuned(request, real_images, tmp_path_factory):
    """Three hundred images with their curve, and what was told meanwhile."""
    path = tmp_path_factory.mktemp("tuned") / f"{request.param}.zarr"
    pi.build_index(real_images(300, 12)[0], path, scales=(3, 5), machine=request.param, lists=400)
    told = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tuning, "NEAR", (*POINTS, LARGEST))
        patched.setattr(tuning._Levels, "_exact", lambda self: 1e9)
        patched.setattr(tuning, "PROBES", (2, 16, 400))
        return pi.tune(path, progress=lambda *args: told.append(args)), told


def test_every_scale_has_its_points(tuned):
    store, told = tuned
    for k in (3, 5):
        curve = OperatingCurve.of(store.scale(k))
        assert curve.images == 300
        assert len({point.beta for point in curve.near}) == 3
        assert {(p.probes, p.candidates) for p in curve.near} <= {*POINTS, LARGEST}
        assert all(p.seconds > 0 and p.again > 0 and curve.single > curve.scan > 0 for p in curve.near)
        assert all(list(p.variance) == sorted(p.variance) for p in curve.near)
    assert {stage for stage, _, _ in told} == {
        "images to tune by", "k = 3: operating curve", "k = 5: operating curve"
    }  # fmt: skip
    assert all(0 < done <= total == 1 for _, done, total in told)


def test_a_larger_near_field_leaves_less_to_the_sample(tuned, monkeypatch):
    """What is not in it varies less: it holds the heaviest patches."""
    store, _ = tuned
    monkeypatch.setattr(tuning, "FIRST_CELLS", 12)
    clean = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for k in (3, 5):
        levels = tuning._Levels(store, k, [0.1, 0.5], clean, np.random.default_rng(0))
        for query in levels._queries:
            small, large = (
                np.mean(levels._near(query, *options, np.inf, [])[0].variance) for options in POINTS
            )
            assert large < small


def test_what_is_missed_moves_the_mean(tuned):
    """Of a near field without the heaviest member of each pixel, as of one that had it from the beginning."""
    store, _ = tuned
    clean = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
    levels = tuning._Levels(store, 5, [0.3], clean, np.random.default_rng(0))
    _, (near,), _ = levels._retrieve(levels._queries[0], *POINTS[1])
    members = near.members
    heaviest = members.logit == near.state.max_logit.numpy()[members.pixel].astype(np.float32)
    fewer = type(members)(*(array[~heaviest] for array in members))

    def state(members):
        found = SoftmaxState.empty((144,), 1)
        values = store.pixels.numpy().reshape(300, 144)[members.image, members.place] / 127.5 - 1
        for pixel in range(144):
            mine = members.pixel == pixel
            logits, colours = (torch.from_numpy(a[mine]).float() for a in (members.logit, values))
            one = SoftmaxState.of(logits, colours[:, None])
            for here, there in zip(vars(found).values(), vars(one).values(), strict=True):
                here[pixel] = there
        return found

    before, after = state(fewer), state(members)
    moves = levels._moves(fewer, tuning._Deeper(np.arange(144), members), before)
    truth = (after.mean() - before.mean()).abs()[:, 0].numpy()
    # Less than a patch of the least share moves it is not looked at. Logits are float32.
    np.testing.assert_allclose(np.sort(moves)[-50:], np.sort(truth)[-50:], rtol=1e-5)
    assert (np.bincount(members.pixel[heaviest]) == 1).all()
    assert levels._moves(members, tuning._Deeper(np.arange(144), members), after).size == 0


def test_small_near_fields_miss_more(tuned):
    for k in (3, 5):
        curve = OperatingCurve.of(tuned[0].scale(k))
        small, large = ([p.missed for p in curve.near if p.probes == probes] for probes, _ in POINTS)
        assert (np.array(small) >= large).all()
        assert np.max(small) > 0
        assert (np.diff(small) >= 0).all()  # the smaller the moves that count, the more


def test_the_largest_is_tried_only_where_others_miss_too_much(tuned, monkeypatch):
    store, _ = tuned
    clean = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
    monkeypatch.setattr(tuning, "NEAR", (*POINTS, LARGEST))
    monkeypatch.setattr(tuning._Levels, "_exact", lambda self: 1e9)
    for blind, expected in ((None, 2), (0.6, 3)):  # at one of the levels is enough
        monkeypatch.setattr(NearPoint, "sees", lambda self, tolerance, blind=blind: self.beta != blind)
        levels = tuning._Levels(store, 5, [0.3, 0.6], clean, np.random.default_rng(0))
        assert len(levels.measure(lambda done: None).near) == 2 * expected
    # A near field that takes longer than exact scores is the last, and no deeper one is made.
    monkeypatch.setattr(tuning._Levels, "_exact", lambda self: 1e-9)
    monkeypatch.setattr(tuning._Levels, "_deeper", None)
    points = levels.measure(lambda done: None).near
    assert [point.missed for point in points] == [None, None]


def test_all_lists_hold_the_heaviest_patches(tuned):
    """Found in all lists, re-ranked: their mass is the exact one, but for those that codes confuse."""
    for k in (3, 5):
        top = OperatingCurve.of(tuned[0].scale(k)).top
        by_probes = np.array([point.mass for point in top]).reshape(-1, 3)
        assert (np.diff(by_probes) > -1e-3).all()
        assert (by_probes[:, 2] > 0.97).all()
        assert (by_probes <= 1).all()


def test_the_heaviest_patches_are_those_of_brute_force(tuned, monkeypatch):
    """All of them here, so that they weigh what brute force says."""
    store, _ = tuned
    monkeypatch.setattr(tuning, "CANDIDATES", (300 * 12 * 12,))
    clean = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    levels = tuning._Levels(store, 5, [0.3, 0.6], clean, np.random.default_rng(0))
    for found, query in zip(levels._heaviest(), levels._queries, strict=True):
        images = store.training.read(0, 300)
        truth = brute.posterior_mean(images, query.x[0].numpy(), query.beta, store.machine, 5)
        assert (found.diff(dim=1)[found[:, 1:].isfinite()] <= 0).all()
        np.testing.assert_array_equal(found.isfinite().sum(1), truth.count.reshape(-1)[levels._pixels])
        # float32 products of 25 numbers, over 2 beta.
        weights = found.double().logsumexp(1)
        np.testing.assert_allclose(weights, truth.log_weight.reshape(-1)[levels._pixels], rtol=0, atol=1e-4)


def test_what_is_there_is_left_alone(tuned, monkeypatch):
    store, _ = tuned
    before = store.scale(3).attributes
    monkeypatch.setattr(tuning, "_draw", None)  # would be called
    again = pi.tune(store.path)
    assert again.scale(3).attributes == before
    assert again.attributes == store.attributes


def test_estimators_choose_by_it(tuned, monkeypatch, tmp_path):
    """A curve by which a small near field is the best for one tolerance, and a large one for another."""
    shutil.copytree(tuned[0].path, tmp_path / "s.zarr")
    beta = brute.beta_of(0.5)
    near = (
        NearPoint(beta, 2, 4, 1e-6, 1e-6, (1e-4,), NOTHING),
        NearPoint(beta, 16, 64, 1e-4, 1e-4, (1e-8,), NOTHING),
    )
    measured = OperatingCurve.of(tuned[0].scale(3)).top
    curve = OperatingCurve(300, 1e-2, 1e-2, 1e-1, 0.001, near, measured)
    pi.open_index(tmp_path / "s.zarr").scale(3).save_curve(curve.as_dict())
    store = pi.open_index(tmp_path / "s.zarr")
    chosen = []
    real = auto.NearField

    def spy(data, query, probes, candidates, recalled):
        chosen.append((probes, candidates))
        return real(data, query, probes, candidates, recalled)

    monkeypatch.setattr(auto, "NearField", spy)
    monkeypatch.setattr(auto, "WORTH", np.inf)  # where options are given
    x = torch.randn(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    for tolerance, expected in ((0.1, (2, 4)), (0.01, (16, 64))):
        pi.ScoreMachine(store, estimator="auto", tolerance=tolerance).posterior_mean(x, 0.5, k=3)
        assert chosen.pop() == expected
    pi.ScoreMachine(store, estimator="auto", probes=3, candidates=5).posterior_mean(x, 0.5, k=3)
    assert chosen.pop() == (3, 5)
    codes = [
        pi.ScoreMachine(store, estimator="topk", candidates=64, quality=quality)
        .posterior_mean(x, 0.5, k=3)
        .codes_scanned
        for quality in (0.01, 1.0)
    ]
    assert codes[0] < codes[1]


def test_a_store_without_scales_needs_none(tmp_path, real_images):
    pi.build_index(real_images(5, 8)[0], tmp_path / "ls.zarr", scales=(3,), machine="LS")
    assert pi.tune(tmp_path / "ls.zarr").scales == ()


def test_a_store_that_cannot_be_written_to_is_told_before_any_work(tuned, monkeypatch, tmp_path):
    monkeypatch.setattr(tuning.os, "access", lambda path, mode: False)
    monkeypatch.setattr(tuning, "_draw", None)
    assert pi.tune(tuned[0].path).scales == (3, 5)  # nothing to do
    with pytest.raises(InputError, match="cannot be written to"):
        pi.tune(tuned[0].path, overwrite=True)


def test_there_must_be_a_store(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no such store"):
        pi.tune(tmp_path / "none.zarr")
