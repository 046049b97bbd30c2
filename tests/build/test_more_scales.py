"""Scales that are added to a finished store."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from stores import assert_refuses_damaged_images, assert_same_lists, interrupted, names_in, stages_of, tree

import patchindex as pi
from patchindex.build import free_bytes
from patchindex.errors import InputError, StoreError


@pytest.fixture
def small(labelled, tmp_path):
    return pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3], labels=labelled[1], seed=3)


def test_added_scales_equal_those_of_one_build(small, labelled, tmp_path):
    before = tree(small.path)
    found = pi.add_scales(small.path, [7, 5, 3], seed=3)
    assert found.scales == (3, 5, 7)
    del before["scales.json"]
    assert before.items() <= tree(small.path).items()  # no other file changes
    whole = pi.build_index(labelled[0], tmp_path / "w.zarr", scales=[3, 5, 7], labels=labelled[1], seed=3)
    for k in (5, 7):
        assert_same_lists(found, whole, k)
    assert pi.verify(found.path).whole
    assert names_in(tmp_path) == ["s.zarr", "w.zarr"]


def test_damaged_images_get_no_scale(small, tmp_path):
    assert_refuses_damaged_images(small.path, lambda: pi.add_scales(small.path, [5]))
    assert names_in(tmp_path) == ["s.zarr"]


def test_code_size_and_schedule_depend_on_all_scales(labelled, tmp_path):
    """The code size depends on the noise at which the schedule uses a scale."""
    images, locality = np.tile(labelled[0], (2, 1, 1, 1)), [3, 3, 5, 5, 7, 7, 9, 9]
    whole = pi.build_index(images, tmp_path / "a.zarr", scales=[3, 9], locality=locality, seed=1)
    pi.build_index(images, tmp_path / "b.zarr", scales=[3], locality=locality, seed=1)
    both = pi.add_scales(tmp_path / "b.zarr", 9, seed=1)
    assert both.scale(9).attributes["pca_dims"] == whole.scale(9).attributes["pca_dims"]
    assert both.locality == whole.locality
    assert both.locality.scales == (3, 3, 3, 9, 9, 9, 9)
    assert both.info()["scales"] == [3, 9]
    again = pi.build_index(images, both.path, scales=[3], locality=locality, seed=1, resume=True)
    assert again.scales == (3, 9)


def test_an_interrupted_call_continues_after_its_last_stage(small):
    interrupted(pi.add_scales, small.path, [5], at="k = 5: merging")
    assert pi.open_index(small.path).scales == (3,)
    assert pi.verify(small.path).whole
    index, stages = stages_of(pi.add_scales, small.path, [5])
    assert index.scales == (3, 5)
    assert not any("training" in stage or "assigning" in stage for stage in stages)
    assert stages_of(pi.add_scales, small.path, [5])[1] == []


def test_an_unfinished_scale_of_other_settings_is_built_anew(small):
    interrupted(pi.add_scales, small.path, [7], pca_dims=8, lists=10, at="k = 7: merging")
    # The space of an unfinished scale counts as free: the next call uses or removes the scale.
    assert free_bytes(small.path) > shutil.disk_usage(small.path).free
    scale = pi.add_scales(small.path, [7], pca_dims=6, lists=12).scale(7)
    assert (scale.attributes["pca_dims"], scale.attributes["lists"]) == (6, 12)
    assert pi.verify(small.path).whole


def test_a_lost_scale_can_be_added_again(labelled, tmp_path):
    store = pi.build_index(labelled[0], tmp_path / "s.zarr", locality=[3, 3, 5, 7])
    shutil.rmtree(store.path / "scales" / "k007")
    found = pi.open_index(store.path)
    assert found.locality == store.locality  # not moved to the scales that are left
    with pytest.raises(StoreError, match="k007: is missing; add it again"):
        found.scale(7)
    assert pi.add_scales(store.path, [7]).scales == (3, 5, 7)
    assert pi.verify(store.path).whole


@pytest.mark.parametrize(
    ("scales", "options", "words"),
    [
        ([4], {}, "k must be odd"),
        ([15], {}, "larger than the images"),
        ([7], {"seed": -1}, "seed: must be"),
        ([7], {"seed": None}, "seed: must be"),
        ([7], {"pca_dims": "8"}, "pca_dims: must be"),
    ],
)
def test_invalid_settings_are_refused(small, scales, options, words):
    with pytest.raises(InputError, match=words):
        pi.add_scales(small.path, scales, **options)
    assert names_in(small.path / "scales") == ["k003"]


def test_a_machine_without_an_index_gets_no_scales(labelled, tmp_path):
    store = pi.build_index(labelled[0], tmp_path / "ls.zarr", machine="LS")
    with pytest.raises(InputError, match="LS has no index"):
        pi.add_scales(store.path, [3])
