"""Forecasts of memory and disk, and the settings that they check."""

from __future__ import annotations

import json

import numpy as np
import pytest
from stores import tree

import patchindex as pi
from patchindex.build import BuildSettings, parse_memory, plan_build
from patchindex.build.plan import FEWEST_LISTS
from patchindex.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (1000, 1000),
        ("1000", 1000),
        ("1K", 1024),
        ("4G", 4 << 30),
        ("4 GiB", 4 << 30),
        ("4gb", 4 << 30),
        ("500M", 500 << 20),
        ("1.5G", 3 << 29),
        ("2T", 2 << 40),
        (" 7 ", 7),
        (1.0e9, 10**9),
        (np.int64(5), 5),
    ],
)
def test_parse_memory(text, expected):
    assert parse_memory(text) == expected


@pytest.mark.parametrize(
    "text", ["", "G", "4X", "four", "-1G", 0, -5, "0", "0.5", "1e400", "4GG", "nan", "9" * 400]
)
def test_invalid_amounts_of_memory_are_refused(text):
    with pytest.raises(InputError, match="not an amount of memory"):
        parse_memory(text)


@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize("settings", [{}, {"pca_dims": 6}, {"lists": 3}, {"lists": 10_000, "pca_dims": 25}])
@pytest.mark.parametrize("machine", ["ELS", "bbELS"])
def test_a_store_is_no_larger_than_its_forecast(labelled, tmp_path, machine, settings, with_labels):
    images, labels = labelled
    source = pi.open_images(images, labels=labels if with_labels else None)
    plan, _ = plan_build(source, BuildSettings((3, 5), machine, **settings))
    index = pi.build_index(source, tmp_path / "s.zarr", scales=(3, 5), machine=machine, **settings)
    stored = sum(map(len, tree(index.path).values()))
    assert stored <= plan.disk_bytes < 4 * stored
    for scale in plan.scales:
        built = index.scale(scale.k).attributes
        assert [scale.patches, scale.lists, scale.dims] == [
            built[n] for n in ("patches", "lists", "pca_dims")
        ]


def test_a_plan_counts_the_patches_of_the_machine(labelled):
    source = pi.open_images(labelled[0])
    for machine, train_windows, patches in (
        ("ELS", "valid", 10 * 10),
        ("ELS", "wrapped", 14 * 14),
        ("bbELS", "valid", 14 * 14),
    ):
        plan, _ = plan_build(source, BuildSettings([5], machine, train_windows))
        assert [scale.patches for scale in plan.scales] == [40 * patches]
        assert plan.memory_bytes >= plan.scales[0].memory_bytes > plan.scales[0].disk_bytes
        assert json.loads(json.dumps(plan.as_dict()))["disk_bytes"] == plan.disk_bytes


@pytest.mark.parametrize("machine", ["LS", "IS"])
def test_exact_machines_have_no_index(labelled, machine):
    source = pi.open_images(labelled[0])
    for scales in (None, [3, 5]):
        plan, _ = plan_build(source, BuildSettings(scales, machine))
        assert plan.scales == ()


def test_scales_default_to_those_of_the_schedule(labelled):
    source = pi.open_images(labelled[0])
    plan, schedule = plan_build(source, BuildSettings(locality=[9, 3, 5, 7]))
    assert [scale.k for scale in plan.scales] == [3, 5, 7]
    assert schedule.scales == (3, 5, 7)
    plan, schedule = plan_build(source, BuildSettings([7, 3, 3], locality=[9, 3, 5, 7]))
    assert [scale.k for scale in plan.scales] == [3, 7]
    assert schedule.scales == (3, 3, 7)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "scales: ELS needs scales"),
        ({"machine": "bbELS"}, "scales: bbELS needs scales"),
        ({"scales": []}, "scales: the sequence is empty"),
        ({"scales": 3.5}, "scales: must be a sequence, got 3.5"),
        ({"scales": True}, "scales: must be a sequence, got True"),
        ({"scales": np.array(3)}, r"scales: must be a sequence, got array\(3\)"),
        ({"scales": [3, "5"]}, "scales: k must be odd and at least 1, got '5'"),
        ({"scales": [3], "seed": None}, "seed: must be a whole number, got None"),
        ({"scales": [3], "seed": 1.5}, "seed: must be a whole number, got 1.5"),
        ({"scales": [3, 4]}, "k must be odd"),
        ({"scales": [15]}, "k = 15 is larger than the images"),
        ({"scales": [3], "machine": "XLS"}, "unknown machine"),
        ({"machine": "XLS"}, "unknown machine"),
        ({"scales": [3], "pca_dims": 0}, "pca_dims: must be at least 1"),
        ({"scales": [3], "pca_dims": True}, "pca_dims: must be a whole number, got True"),
        ({"scales": [3], "lists": 0}, "lists: must be at least 1"),
        ({"locality": "none"}, "unknown preset"),
        ({"machine": "LS", "train_windows": "wrapped"}, "train_windows"),
    ],
)
def test_invalid_settings_are_refused(labelled, settings, words):
    with pytest.raises(InputError, match=words):
        plan_build(pi.open_images(labelled[0]), BuildSettings(**settings))


def test_scales_may_be_a_generator_a_number_or_numbers_of_numpy(labelled, tmp_path):
    numbers = {"lists": np.int64(4), "seed": np.int64(1)}
    for scales in ((k for k in (3, 5)), np.array([3, 5]), 3, np.int64(3)):
        index = pi.build_index(labelled[0], tmp_path / "s.zarr", scales=scales, **numbers, overwrite=True)
        assert index.scales[0] == 3
    assert index.attributes["settings"]["lists"] == 4
    added = pi.add_scales(index.path, np.int64(5), pca_dims=np.int64(2), **numbers)
    assert added.scales == (3, 5)


def test_a_small_budget_reduces_the_default_number_of_lists():
    source = pi.open_images(np.random.default_rng(0).integers(0, 256, (3000, 20, 20), np.uint8))
    (free,) = plan_build(source, BuildSettings([3]))[0].scales
    assert free.lists == 3000 * 18 * 18 // 256
    (tight,) = plan_build(source, BuildSettings([3]), memory=free.memory_bytes - 1)[0].scales
    assert tight.lists == free.lists // 2
    assert tight.memory_bytes < free.memory_bytes
    assert plan_build(source, BuildSettings([3]), memory=1)[0].scales[0].lists == FEWEST_LISTS
    assert plan_build(source, BuildSettings([3], lists=3000), memory=1)[0].scales[0].lists == 3000
