"""The expected time of tuning: its stages, and how their times grow."""

from __future__ import annotations

import numpy as np
import pytest
from stores import stages_of

import patchindex as pi
from patchindex.build import BuildSettings, plan_build
from patchindex.estimators import AutoPolicy
from patchindex.estimators.curve import OperatingCurve
from patchindex.study.measure import TuneSettings
from patchindex.study.tune import exact_is_faster
from patchindex.study.tune_times import measure_slowness, tuning_seconds

QUICK = TuneSettings(images=1, near=((8, 8), (16, 16)), probes=(2,), candidates=(4,), pixels=2)


@pytest.fixture(scope="module")
def images(real_images):
    return pi.open_images(real_images(40, 14)[0])


def test_the_stages_with_a_time_are_the_stages_of_tuning(images, tmp_path):
    plan = plan_build(images, BuildSettings((3, 5)))[0]
    path = pi.build_index(images, tmp_path / "s.zarr", scales=(3, 5)).path
    _, stages = stages_of(pi.tune, path, settings=QUICK)
    expected = tuning_seconds(plan, QUICK)
    assert list(expected) == list(dict.fromkeys(stages))
    assert all(seconds > 0 for seconds in expected.values())
    assert tuning_seconds(plan_build(images, BuildSettings(machine="LS"))[0]) == {}


def test_tuning_takes_longer_for_more_images_and_for_a_slower_machine(images):
    plans = [plan_build(images, BuildSettings((3, 7)), assume_images=n)[0] for n in (10**4, 10**5)]
    few, many = (tuning_seconds(plan) for plan in plans)
    for stage, seconds in few.items():
        assert seconds < many[stage] < 20 * seconds
    slow = tuning_seconds(plans[0], slower=3.0)
    assert slow == {stage: pytest.approx(3 * seconds) for stage, seconds in few.items()}


def test_a_plan_is_tuned_if_its_store_is(images, tmp_path):
    plan = plan_build(images, BuildSettings((3, 5)))[0]
    index = pi.build_index(images, tmp_path / "s.zarr", scales=(3, 5))
    for settings in (TuneSettings(), TuneSettings(policy=AutoPolicy(probes=1, candidates=1))):
        assert exact_is_faster(plan, settings) == exact_is_faster(index, settings)
    assert not exact_is_faster(plan_build(images, BuildSettings((3,)), assume_images=10**5)[0])


def test_images_of_three_rows_are_measured(tmp_path):
    """Three rows look like channels."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 14, 1), np.uint8)
    images = pi.open_images(pixels, axes="NHWC")
    assert measure_slowness(images, plan_build(images, BuildSettings((3,)))[0]) > 0
    index = pi.tune(pi.build_index(images, tmp_path / "s.zarr", scales=(3,)).path, settings=QUICK)
    assert OperatingCurve.of(index.scale(3)) is not None


def test_the_speed_of_this_machine_is_measured(images):
    assert 0.01 < measure_slowness(images, plan_build(images, BuildSettings((3,)))[0]) < 1000
