"""`tune`: the operating curve agrees with brute force, is kept in the store, and is used by estimators."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import brute
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError, SourceNotFoundError
from patchindex.estimators import AutoPolicy, ScoreContext
from patchindex.estimators.auto import Auto
from patchindex.estimators.curve import MOVES, NearPoint, OperatingCurve
from patchindex.exact import ScoreRequest
from patchindex.kernels.known_patches import KnownPatches
from patchindex.softmax import SoftmaxState
from patchindex.study.measure import TuneSettings, heaviest_logits, measure_curve, missed_moves
from patchindex.study.tune import exact_is_faster, tune

NOTHING = (0.0,) * len(MOVES)
POINTS, LARGEST = ((2, 4), (16, 64)), (32, 128)
SETTINGS = TuneSettings(
    near=(*POINTS, LARGEST),
    probes=(2, 16, 400),
    exact_seconds=1e9,  # so that all near fields are worth measuring
    policy=AutoPolicy(first_strata=12),  # of forty
)


@pytest.fixture(scope="module", params=["ELS", "bbELS"])
def tuned(request, real_images, tmp_path_factory):
    """Three hundred images with their curve, and the progress that was reported."""
    path = tmp_path_factory.mktemp("tuned") / f"{request.param}.zarr"
    pi.build_index(real_images(300, 12)[0], path, scales=(3, 5), machine=request.param, lists=400)
    reported = []
    return tune(path, settings=SETTINGS, progress=lambda *args: reported.append(args)), reported


@pytest.fixture
def curves(tuned):
    return [OperatingCurve.of(tuned[0].scale(k)) for k in (3, 5)]


def clean_image(seed):
    return torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noisy_requests(store, k, betas, seed=0):
    rng, clean = np.random.default_rng(0), clean_image(seed)
    noise = [torch.from_numpy(rng.standard_normal(clean.shape)).float() for _ in betas]
    return [
        ScoreRequest(store.training, store.geometry(k), (1 - b) ** 0.5 * clean + b**0.5 * n, b)
        for b, n in zip(betas, noise, strict=True)
    ]


def test_every_scale_has_its_points(tuned, curves):
    for curve in curves:
        assert curve.images == 300
        assert len({point.beta for point in curve.near}) == 3
        assert {(p.probes, p.candidates) for p in curve.near} <= {*POINTS, LARGEST}
        assert all(p.seconds > 0 and p.again > 0 and curve.single > curve.scan > 0 for p in curve.near)
        assert all(list(p.variance) == sorted(p.variance) for p in curve.near)
    assert {stage for stage, _, _ in tuned[1]} == {
        "images to tune by", "k = 3: operating curve", "k = 5: operating curve"
    }  # fmt: skip
    assert all(0 < done <= total == 1 for _, done, total in tuned[1])


def test_missed_patches_move_the_mean_as_if_they_were_added(tuned):
    """A near field without the heaviest member of each pixel, compared with one that has it."""
    store, _ = tuned
    (request,) = noisy_requests(store, 5, [0.3], seed=1)
    near = Auto(ScoreContext(store, torch.device("cpu"))).retrieve(request, *POINTS[1]).image(0)
    members = near.members
    heaviest = members.logit == near.state.max_logit.numpy()[members.pixel].astype(np.float32)
    fewer = KnownPatches(*(array[~heaviest] for array in members))
    images = store.pixels.numpy()

    def softmax(members):
        values = images.reshape(300, 144)[members.image, members.place] / 127.5 - 1
        pixels = []
        for pixel in range(144):
            mine = members.pixel == pixel
            logits, colours = (torch.from_numpy(a[mine]).float() for a in (members.logit, values))
            pixels.append(SoftmaxState.of(logits, colours[:, None])[None])
        return SoftmaxState.cat(pixels)

    before, after = softmax(fewer), softmax(members)
    moves = missed_moves(images, fewer, members, before)
    truth = (after.mean() - before.mean()).abs()[:, 0].numpy()
    # Patches that move the mean less than the least of MOVES are left out. Logits are float32.
    np.testing.assert_allclose(np.sort(moves)[-50:], np.sort(truth)[-50:], rtol=1e-5)
    assert (np.bincount(members.pixel[heaviest]) == 1).all()
    assert missed_moves(images, members, members, after).size == 0


def test_small_near_fields_miss_more_and_leave_more_variance_to_the_sample(curves):
    for curve in curves:
        small, large = ([p for p in curve.near if p.probes == probes] for probes, _ in POINTS)
        for one, two in zip(small, large, strict=True):
            assert one.beta == two.beta
            assert np.mean(one.variance) > np.mean(two.variance)
            # They may differ by rounding where both miss next to nothing.
            assert (np.subtract(one.missed, two.missed) > -1e-6).all()
            assert (np.diff(one.missed) >= 0).all()  # the smaller the moves that count, the more
        assert max(max(point.missed) for point in small) > 0


@pytest.mark.parametrize(("blind", "expected"), [(None, 2), (0.6, 3)])  # one noise level is enough
def test_the_largest_near_field_is_measured_only_where_others_miss_too_much(
    tuned, monkeypatch, blind, expected
):
    monkeypatch.setattr(NearPoint, "sees", lambda self, *_: self.beta != blind)
    assert len(curve_of(tuned[0], SETTINGS).near) == 2 * expected


def test_near_fields_slower_than_exact_scores_are_not_measured_further(tuned):
    settings = replace(SETTINGS, exact_seconds=1e-9)
    assert [point.missed for point in curve_of(tuned[0], settings).near] == [None, None]


def curve_of(store, settings):
    rng = np.random.default_rng(0)
    return measure_curve(store, 5, [0.3, 0.6], clean_image(1), rng, settings, lambda done, total: None)


def test_a_search_of_all_lists_finds_the_whole_mass(curves):
    """But for patches that codes confuse."""
    for curve in curves:
        by_probes = np.array([point.mass for point in curve.top]).reshape(-1, 3)
        assert (np.diff(by_probes) > -1e-3).all()
        assert (by_probes[:, 2] > 0.97).all()
        assert (by_probes <= 1).all()


def test_the_heaviest_logits_are_those_of_brute_force(tuned):
    """All logits here, so that their sum is the sum of brute force."""
    store, _ = tuned
    requests, rows = noisy_requests(store, 5, [0.3, 0.6]), np.arange(3, 144, 9)
    found = heaviest_logits(requests, rows, store.pixels, 300 * 12 * 12)
    for logits, request in zip(found, requests, strict=True):
        images = store.training.read(0, 300)
        truth = brute.posterior_mean(images, request.x[0].numpy(), request.beta, store.machine, 5)
        assert (logits.diff(dim=1)[logits[:, 1:].isfinite()] <= 0).all()
        np.testing.assert_array_equal(logits.isfinite().sum(1), truth.count.reshape(-1)[rows])
        # float32 products of 25 numbers, over 2 beta.
        weights = logits.double().logsumexp(1)
        np.testing.assert_allclose(weights, truth.log_weight.reshape(-1)[rows], rtol=0, atol=1e-4)


def test_scales_with_a_curve_are_skipped(tuned):
    store, _ = tuned
    reported = []
    before = store.scale(3).attributes
    again = pi.tune(store.path, progress=lambda *args: reported.append(args))
    assert again.scale(3).attributes == before
    assert again.attributes == store.attributes
    assert reported == []


def test_estimators_choose_by_the_curve(tuned, tmp_path):
    """By this curve a small near field is best for a loose tolerance, and a large one for a tight one."""
    shutil.copytree(tuned[0].path, tmp_path / "s.zarr")
    beta = brute.beta_of(0.5)
    near = (
        NearPoint(beta, 2, 4, 1e-6, 1e-6, (1e-4,), NOTHING),
        NearPoint(beta, 16, 64, 1e-4, 1e-4, (1e-8,), NOTHING),
    )
    top = OperatingCurve.of(tuned[0].scale(3)).top
    curve = OperatingCurve(300, 1e-2, 1e-2, 1e-1, 0.001, near, top)
    pi.open_index(tmp_path / "s.zarr").scale(3).save_curve(curve.as_dict())
    store = pi.open_index(tmp_path / "s.zarr")
    x = torch.randn(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    request = ScoreRequest(store.training, store.geometry(3), x, beta)
    context, policy = ScoreContext(store, torch.device("cpu")), AutoPolicy(cost_limit=np.inf)
    for options, expected in (
        ({"tolerance": 0.1}, (2, 4)),
        ({"tolerance": 0.01}, (16, 64)),
        ({"probes": 3, "candidates": 5}, (3, 5)),
    ):
        assert Auto(context, policy=policy, **options).choose(request) == expected
    codes = [
        pi.ScoreMachine(store, estimator="topk", candidates=64, quality=quality)
        .posterior_mean(x, 0.5, k=3)
        .codes_scanned
        for quality in (0.01, 1.0)
    ]
    assert codes[0] < codes[1]


def test_a_store_without_scales_needs_no_curve(tmp_path, real_images):
    pi.build_index(real_images(5, 8)[0], tmp_path / "ls.zarr", scales=(3,), machine="LS")
    assert pi.tune(tmp_path / "ls.zarr").scales == ()


def test_a_read_only_store_is_refused_before_any_work(tuned, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    reported = []
    assert pi.tune(tuned[0].path).scales == (3, 5)  # nothing to do
    with pytest.raises(InputError, match="cannot be written to"):
        pi.tune(tuned[0].path, overwrite=True, progress=lambda *args: reported.append(args))
    assert reported == []


def test_a_missing_store_is_refused(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no such store"):
        pi.tune(tmp_path / "none.zarr")


def test_a_seed_that_is_no_whole_number_is_refused(tuned):
    with pytest.raises(InputError, match="seed: must be a whole number, got None"):
        pi.tune(tuned, seed=None)


@pytest.mark.parametrize(
    ("name", "sizes"), [("near", ((1 << 16, 8),)), ("probes", (8, 32_769)), ("candidates", (0,))]
)
def test_sizes_that_a_curve_cannot_hold_are_refused_before_any_work(name, sizes):
    with pytest.raises(InputError, match=rf"{name}: must be from 1 to 32768, got \d+; use"):
        TuneSettings(**{name: sizes})


def test_exact_scores_of_few_images_are_slower_than_a_tiny_near_field_only(real_images, tmp_path):
    index = pi.build_index(real_images(40, 14)[0], tmp_path / "s.zarr", scales=[3])
    assert exact_is_faster(index)
    quick = TuneSettings(policy=AutoPolicy(probes=1, candidates=1))
    assert not exact_is_faster(index, quick)
