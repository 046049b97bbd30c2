"""Calibration: what is measured agrees with brute force, is kept in the store, and is what estimators use."""

from __future__ import annotations

import shutil

import brute
import numpy as np
import pytest
import torch
import zarr

import patchindex as pi
from patchindex import calibration
from patchindex.errors import InputError, SourceNotFoundError
from patchindex.estimators import auto
from patchindex.estimators.curve import ATTRIBUTE, NearPoint, OperatingCurve

POINTS = ((2, 4), (16, 64))


@pytest.fixture(scope="module", params=["ELS", "bbELS"])
def calibrated(request, real_images, tmp_path_factory):
    """Three hundred images with their curve, and what was told meanwhile."""
    path = tmp_path_factory.mktemp("calibrated") / f"{request.param}.zarr"
    pi.build_index(real_images(300, 12)[0], path, scales=(3, 5), machine=request.param, lists=400)
    told = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calibration, "NEAR", POINTS)
        patched.setattr(calibration, "PROBES", (2, 16, 400))
        return pi.calibrate(path, progress=lambda *args: told.append(args)), told


def test_every_scale_has_its_points(calibrated):
    store, told = calibrated
    for k in (3, 5):
        curve = OperatingCurve.of(store.scale(k))
        assert curve.images == 300
        assert len({point.beta for point in curve.near}) == 3
        assert {(p.probes, p.candidates) for p in curve.near} <= set(POINTS)
        assert all(p.seconds > 0 and p.again > 0 and curve.single > curve.scan > 0 for p in curve.near)
        assert all(list(p.variance) == sorted(p.variance) for p in curve.near)
    assert {stage for stage, _, _ in told} == {
        "images to calibrate by", "k = 3: operating curve", "k = 5: operating curve"
    }  # fmt: skip
    assert all(0 < done <= total == 1 for _, done, total in told)


def test_a_larger_near_field_leaves_less_to_the_sample(calibrated, monkeypatch):
    """What is not in it varies less: it holds the heaviest patches."""
    store, _ = calibrated
    monkeypatch.setattr(calibration, "FIRST_CELLS", 12)
    clean = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for k in (3, 5):
        levels = calibration._Levels(store, k, [0.1, 0.5], clean, np.random.default_rng(0))
        for query in levels._queries:
            small, large = (np.mean(levels._near(query, *options)[0].variance) for options in POINTS)
            assert large < small


def test_all_lists_hold_the_heaviest_patches(calibrated):
    """Found in all lists, re-ranked: their mass is the exact one, but for those that codes confuse."""
    for k in (3, 5):
        top = OperatingCurve.of(calibrated[0].scale(k)).top
        by_probes = np.array([point.mass for point in top]).reshape(-1, 3)
        assert (np.diff(by_probes) > -1e-3).all()
        assert (by_probes[:, 2] > 0.97).all()
        assert (by_probes <= 1).all()


def test_the_heaviest_patches_are_those_of_brute_force(calibrated, monkeypatch):
    """All of them here, so that they weigh what brute force says."""
    store, _ = calibrated
    monkeypatch.setattr(calibration, "CANDIDATES", (300 * 12 * 12,))
    clean = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    levels = calibration._Levels(store, 5, [0.3, 0.6], clean, np.random.default_rng(0))
    for found, query in zip(levels._heaviest(), levels._queries, strict=True):
        images = store.training.read(0, 300)
        truth = brute.posterior_mean(images, query.x[0].numpy(), query.beta, store.machine, 5)
        assert (found.diff(dim=1)[found[:, 1:].isfinite()] <= 0).all()
        np.testing.assert_array_equal(found.isfinite().sum(1), truth.count.reshape(-1)[levels._pixels])
        # float32 products of 25 numbers, over 2 beta.
        weights = found.double().logsumexp(1)
        np.testing.assert_allclose(weights, truth.log_weight.reshape(-1)[levels._pixels], rtol=0, atol=1e-4)


def test_what_is_there_is_left_alone(calibrated, monkeypatch):
    store, _ = calibrated
    before = store.scale(3).attributes
    monkeypatch.setattr(calibration, "_draw", None)  # would be called
    again = pi.calibrate(store.path)
    assert again.scale(3).attributes == before
    assert again.attributes == store.attributes


def test_estimators_choose_by_it(calibrated, monkeypatch, tmp_path):
    """A curve by which a small near field is the best for one tolerance, and a large one for another."""
    shutil.copytree(calibrated[0].path, tmp_path / "s.zarr")
    beta = brute.beta_of(0.5)
    near = (
        NearPoint(beta, 2, 4, 1e-6, 1e-6, (1e-4,)),
        NearPoint(beta, 16, 64, 1e-4, 1e-4, (1e-8,)),
    )
    measured = OperatingCurve.of(calibrated[0].scale(3)).top
    curve = OperatingCurve(300, 1e-2, 1e-1, 0.001, near, measured)
    zarr.open_group(tmp_path / "s.zarr/scales/k003", mode="r+").attrs[ATTRIBUTE] = curve.as_dict()
    store = pi.open_index(tmp_path / "s.zarr")
    chosen = []
    real = auto.NearField

    def spy(data, query, probes, candidates, recalled):
        chosen.append((probes, candidates))
        return real(data, query, probes, candidates, recalled)

    monkeypatch.setattr(auto, "NearField", spy)
    monkeypatch.setattr(auto, "WORTH", np.inf)
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
    assert pi.calibrate(tmp_path / "ls.zarr").scales == ()


def test_a_store_that_cannot_be_written_to_is_told_before_any_work(calibrated, monkeypatch, tmp_path):
    monkeypatch.setattr(calibration.os, "access", lambda path, mode: False)
    monkeypatch.setattr(calibration, "_draw", None)
    assert pi.calibrate(calibrated[0].path).scales == (3, 5)  # nothing to do
    with pytest.raises(InputError, match="cannot be written to"):
        pi.calibrate(calibrated[0].path, overwrite=True)


def test_there_must_be_a_store(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no such store"):
        pi.calibrate(tmp_path / "none.zarr")
