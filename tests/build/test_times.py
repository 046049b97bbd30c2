"""The expected time of a build: its stages, and how their times grow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stores import stages_of

import patchindex as pi
from patchindex.build import BuildSettings, measure_rates, plan_build, stage_seconds
from patchindex.build.plan import plan_append
from patchindex.errors import InputError


@pytest.fixture(scope="module")
def images(real_images):
    return pi.open_images(real_images(60, 14)[0])


def seconds_of(images, settings, assume=None):
    return stage_seconds(plan_build(images, settings, assume_images=assume)[0])


@pytest.mark.parametrize("machine", ["ELS", "bbELS"])
def test_the_stages_with_a_time_are_the_stages_of_the_build(images, tmp_path, machine):
    expected = seconds_of(images, BuildSettings((3, 5), machine))
    _, stages = stages_of(pi.build_index, images, tmp_path / "s.zarr", scales=(3, 5), machine=machine)
    assert list(expected) == list(dict.fromkeys(stages))
    assert all(seconds > 0 for seconds in expected.values())


def test_the_stages_of_an_append_have_a_time(images, real_images, tmp_path):
    index = pi.build_index(images, tmp_path / "s.zarr", scales=(3,))
    more = real_images(10, 14, skip=100)[0]
    plan = plan_append(pi.open_images(np.concatenate([images[:], more])), index)
    assert plan.new_images == 10
    expected = stage_seconds(plan)
    _, stages = stages_of(pi.append, index.path, more)
    assert list(expected) == list(dict.fromkeys(stages))
    whole = stage_seconds(plan_build(images, BuildSettings((3,)))[0])
    assert expected["k = 3: assigning patches"] < whole["k = 3: assigning patches"]


def test_a_store_without_an_index_has_the_time_of_its_images(images):
    assert list(seconds_of(images, BuildSettings(machine="LS"))) == ["images"]


def test_times_grow_with_the_images_of_which_the_source_is_a_sample(images):
    settings = BuildSettings((3, 5), lists=2000, pca_dims=8)
    fewer, more = (seconds_of(images, settings, assume) for assume in (10**6, 2 * 10**6))
    assert fewer.keys() == more.keys()
    for stage in ("images", "k = 5: assigning patches", "k = 5: merging lists"):
        assert more[stage] / fewer[stage] == pytest.approx(2, rel=0.05)
    training = "k = 5: training 2000 lists"
    assert more[training] == fewer[training]
    # With more lists a patch is compared with more of them.
    more = seconds_of(images, BuildSettings((5,), lists=8000, pca_dims=8), 10**6)
    assert more["k = 5: training 8000 lists"] > 4 * fewer[training]
    assert more["k = 5: assigning patches"] > fewer["k = 5: assigning patches"]


def test_a_plan_of_a_sample_is_the_plan_of_all_images(real_images):
    everything = pi.open_images(real_images(600, 14)[0])
    settings = BuildSettings((3, 5), pca_dims=8)
    sample, _ = plan_build(everything.subset(60), settings, assume_images=600)
    assert sample == plan_build(everything, settings)[0]


def test_fewer_images_than_the_sample_are_refused(images):
    with pytest.raises(InputError, match="assume_images: 59 images are fewer than the 60 of the source"):
        plan_build(images, BuildSettings((3,)), assume_images=59)


@pytest.mark.parametrize("machine", ["ELS", "bbELS"])
def test_all_rates_are_measured(images, machine, monkeypatch):
    monkeypatch.setattr("patchindex.build.times.LEAST_SECONDS", 0.0)
    plan, _ = plan_build(images, BuildSettings((3, 5), machine))
    rates = measure_rates(images, plan, torch.device("cpu"))
    assert rates.keys() == {0, 3, 5}
    for k in (3, 5):
        positive = ("fit", "project", "code", "assign", "call", "shard", "merge")
        assert all(getattr(rates[k], name) > 0 for name in positive)
    assert sum(stage_seconds(plan, rates).values()) > 0
