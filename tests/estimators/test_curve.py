"""The operating curve: the options of least expected cost are chosen."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from patchindex.estimators.curve import (
    ATTRIBUTE,
    MOVES,
    NearPoint,
    OperatingCurve,
    TopPoint,
    best_share,
)
from patchindex.estimators.policy import DEFAULT_POLICY, AutoPolicy

NOTHING = (0.0,) * len(MOVES)
CURVE = OperatingCurve(
    images=1000,
    exact=8e-4,
    scan=1e-3,
    single=2e-2,
    least=0.01,
    near=(
        NearPoint(0.1, 64, 64, 1e-5, 1e-5, (1e-5, 2e-5, 1e-4), NOTHING),
        NearPoint(0.1, 512, 512, 8e-5, 2e-5, (1e-6, 2e-6, 1e-5), NOTHING),
        NearPoint(0.8, 64, 64, 1e-5, 1e-5, (1e-8, 1e-8, 1e-8), NOTHING),
    ),
    top=tuple(
        TopPoint(0.1, probes, candidates, 1e-6 * probes, mass)
        for candidates, masses in ((64, (0.5, 0.9, 0.99)), (1024, (0.4, 0.6, 0.62)))
        for probes, mass in zip((8, 32, 128), masses, strict=True)
    ),
)


def test_the_best_share_is_the_cheapest():
    rng = np.random.default_rng(0)
    shares = np.linspace(0, 1, 2001)
    for full, one in ((1.0, 1.0), (1.0, 3.0), (1.0, 40.0), (5.0, 1.0)):
        needed = rng.random(50) ** 3
        costs = full * shares + one * np.maximum(needed - shares[:, None], 0).mean(1)
        share, cost = best_share(needed, full, one)
        assert cost <= costs.min() + 1e-12
        assert cost == pytest.approx(full * share + one * np.maximum(needed - share, 0).mean())
    assert best_share(np.zeros(3), 1.0, 1.0) == (0.0, 0.0)


def test_expected_cost():
    point = CURVE.near[0]
    # A coarse tolerance needs the smallest sample only.
    assert CURVE.expected(point, 10.0) == pytest.approx(1e-5 + 0.01 * 1e-3)
    tolerances = (1e-3, 1e-2, 1e-1)
    assert sorted(tolerances, key=lambda t: CURVE.expected(point, t)) == list(reversed(tolerances))
    # The longest is a scan of all pixels.
    assert CURVE.expected(point, 1e-9) == pytest.approx(1e-5 + 1e-3, rel=1e-3)
    # A tenth of the images is scanned in a tenth of the time, and needs a larger share as its sample.
    assert CURVE.expected(point, 1e-9, 0.1) == pytest.approx(1e-5 + 1e-4, rel=1e-3)
    assert CURVE.expected(point, 1e-2, 0.1) > 1e-5 + (CURVE.expected(point, 1e-2) - 1e-5) / 10


def test_a_tight_tolerance_gets_a_larger_near_field():
    def probes(*query):
        return CURVE.near_field(*query)[0].probes

    assert probes(0.1, 0.1) == 64
    assert probes(0.1, 0.003) == 512
    assert probes(0.12, 0.003) == 512
    assert probes(0.9, 0.003) == 64
    # In a trajectory a larger near field costs less.
    tolerances = np.geomspace(0.002, 0.1, 200)
    between = [t for t in tolerances if probes(0.1, t, 1.0, True) == 512]
    assert max(between) > max(t for t in tolerances if probes(0.1, t) == 512)


def test_a_near_field_below_the_default_size_has_to_save_a_fifth():
    def curve(seconds):
        return replace(CURVE, near=(replace(CURVE.near[0], seconds=seconds), default, larger))

    variance = (1e-9,) * 3
    default = replace(CURVE.near[1], candidates=DEFAULT_POLICY.candidates, seconds=8e-5, variance=variance)
    larger = replace(default, candidates=4096, seconds=9e-5)
    least = CURVE.least * CURVE.scan  # of a sample, in addition to the near field
    between = DEFAULT_POLICY.saves * (8e-5 + least) - least
    assert curve(0.95 * between).near_field(0.1, 10.0)[0].candidates == 64
    assert curve(1.05 * between).near_field(0.1, 10.0)[0] == default
    # Without a larger one there is nothing to compare with.
    alone = replace(curve(1.05 * between), near=curve(1.05 * between).near[:1])
    assert alone.near_field(0.1, 10.0)[0].candidates == 64


def test_exact_scores_are_chosen_where_they_are_cheaper():
    point, seconds = CURVE.near_field(0.1, 0.003)
    assert seconds == CURVE.expected(point, 0.003) < CURVE.exact
    assert CURVE.near_field(0.1, 1e-4) == (None, CURVE.exact)
    assert CURVE.near_field(0.1, 0.003, 0.02) == (None, 0.02 * CURVE.exact)


def test_a_near_field_that_misses_heavy_patches_is_not_chosen():
    """Here a missed patch moves one pixel in a hundred by 0.2, which a sample does not show."""
    missed = tuple(0.04 / 100 if move < 0.2 else 0.0 for move in MOVES)
    near, wide, _ = CURVE.near
    blind = replace(near, missed=missed)
    assert blind.sees((0.04 / 100 / DEFAULT_POLICY.missed) ** 0.5 * 1.01)
    assert not blind.sees((0.04 / 100 / DEFAULT_POLICY.missed) ** 0.5 * 0.99)
    assert blind.sees(0.5)  # 0.2 is small compared with this tolerance
    tolerance = 0.04
    assert CURVE.near_field(0.1, tolerance)[0] == near
    assert replace(CURVE, near=(blind, wide)).near_field(0.1, tolerance)[0] == wide
    # The same holds for a near field that misses patches at another noise level.
    other = replace(blind, beta=0.8)
    for where in (0.1, 0.8):
        near_field = replace(CURVE, near=(near, wide, other, replace(wide, beta=0.8))).near_field
        assert near_field(where, tolerance)[0].probes == wide.probes
    both = (blind, replace(wide, missed=missed))
    assert replace(CURVE, near=both).near_field(0.1, tolerance) == (None, CURVE.exact)
    dear = replace(near, seconds=1.0, missed=None)
    assert replace(CURVE, near=(dear,)).near_field(0.1, tolerance) == (None, CURVE.exact)


def test_the_cheapest_search_of_the_wanted_quality_is_chosen():
    assert CURVE.search(0.1, 64, 0.98).probes == 128
    assert CURVE.search(0.1, 64, 0.8).probes == 32
    assert CURVE.search(0.1, 100, 0.1).probes == 8
    # With 1 024 candidates no search finds 98 %; then it is 98 % of the best search, which 32 probes miss.
    assert CURVE.search(0.1, 900, 0.98).probes == 128
    assert CURVE.search(0.1, 900, 0.95).probes == 32


def test_a_curve_is_read_as_written():
    scale = SimpleNamespace(path="k003", attributes={ATTRIBUTE: CURVE.as_dict()})
    assert OperatingCurve.of(scale) == CURVE
    assert OperatingCurve.of(SimpleNamespace(path="k003", attributes={})) is None
    other = {**CURVE.as_dict(), "version": 0, "something": "else"}
    assert OperatingCurve.of(SimpleNamespace(path="k003", attributes={ATTRIBUTE: other})) is None


def test_the_seconds_of_a_near_field_are_those_of_its_probes_and_candidates():
    policy = AutoPolicy(probe_ns=2.0, candidate_ns=3.0)
    assert policy.near_field_seconds(5, 7) == pytest.approx(31e-9)
