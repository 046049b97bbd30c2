"""Who else may be at a store: other builders, readers that opened it before, links that lead to it."""

from __future__ import annotations

import os
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from stores import lists_of

import patchindex as pi
from patchindex.build import scale as stages
from patchindex.build import shards as shards_module
from patchindex.build import workdir as workdir
from patchindex.build.scale import ScaleBuild
from patchindex.build.shards import Shards
from patchindex.errors import (
    InputError,
    OutputExistsError,
    PatchIndexError,
    SourceNotFoundError,
    StoreError,
)
from patchindex.index.patch_index import replaced_path


@pytest.fixture
def small(labelled, tmp_path):
    return pi.build_index(labelled[0][:25], tmp_path / "s.zarr", scales=[3, 5], lists=60)


@pytest.mark.parametrize("other", ["append", "add_scales", "tune", "build"])
def test_one_at_a_time(small, labelled, other):
    images = labelled[0]
    does = {
        "append": lambda: pi.append(small.path, images[30:]),
        "add_scales": lambda: pi.add_scales(small.path, 7),
        "tune": lambda: pi.tune(small.path),
        "build": lambda: pi.build_index(images, small.path, scales=[3], overwrite=True),
    }
    refused = []

    def meanwhile(*_):
        if not refused:
            with pytest.raises(InputError, match="another build of it is running"):
                does[other]()
            refused.append(other)

    found = pi.append(small.path, images[25:30], progress=meanwhile)
    assert refused == [other]
    assert len(found.training) == 30
    assert pi.verify(small.path).whole


@pytest.mark.parametrize("how", ["append", "overwrite"])
def test_a_store_that_was_replaced_is_not_mixed_with_the_new_one(small, labelled, how):
    small.scale(3)
    if how == "append":
        pi.append(small.path, labelled[0][25:])
    else:
        pi.build_index(labelled[0][15:], small.path, scales=[3, 5], lists=60, overwrite=True)
    with pytest.raises(StoreError, match="was replaced since it was opened; open it again"):
        small.scale(5)
    pi.open_index(small.path).scale(5)


def test_a_scale_of_other_images_or_another_locality_is_refused(small, labelled, tmp_path):
    other = pi.build_index(labelled[0][15:], tmp_path / "o.zarr", scales=[3, 5], lists=60)
    here = small.path / "scales"
    here.joinpath("k003").rename(tmp_path / "k003")
    shutil.copytree(other.path / "scales/k003", here / "k003")
    with pytest.raises(StoreError, match="of other images or of another locality"):
        pi.open_index(small.path).scale(3)
    assert [what for _, what in pi.verify(small.path).problems] == [
        "is of other images or of another locality scale"
    ]
    shutil.rmtree(here / "k003")
    here.joinpath("k005").rename(here / "k003")
    (tmp_path / "k003").rename(here / "k005")
    for k in (3, 5):
        with pytest.raises(StoreError, match="of another locality"):
            pi.open_index(small.path).scale(k)
    assert not pi.verify(small.path).whole


def test_a_link_leads_to_the_store_and_to_its_lock(small, labelled, tmp_path):
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "l.zarr"
    link.symlink_to(small.path)
    with workdir.locked(workdir.real_path(link)), pytest.raises(InputError, match="is running"):
        pi.add_scales(small.path, [7])
    assert len(pi.append(link, labelled[0][25:]).training) == 40
    pi.build_index(labelled[0], link, scales=[3], overwrite=True)
    assert link.is_symlink()
    assert [path.name for path in link.parent.iterdir()] == ["l.zarr"]
    assert len(pi.open_index(small.path).training) == 40


def test_what_was_ended_between_the_renames_is_put_right(small, labelled, monkeypatch):
    """The old store is under another name then, and the new one is whole but not in its place."""
    real = Path.rename

    def killed(self, target):
        if self.name.endswith(".building"):
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            pi.append(small.path, labelled[0][25:])
    assert not small.path.exists()
    with pytest.raises(SourceNotFoundError, match="give it again with resume=True"):
        pi.open_index(small.path)
    with pytest.raises(OutputExistsError, match="an unfinished build is there"):
        pi.append(small.path, labelled[0][25:])
    assert len(pi.open_index(small.path).training) == 25  # it is back
    assert len(pi.append(small.path, labelled[0][25:], resume=True).training) == 40
    assert [path.name for path in small.path.parent.iterdir()] == ["s.zarr"]
    assert not replaced_path(small.path).exists()


@pytest.mark.parametrize("left", ["nothing", "partial", "empty metadata", "no settings"])
def test_the_first_moments_of_a_build_are_no_build(labelled, tmp_path, left):
    folder = tmp_path / "s.zarr.building"
    folder.mkdir()
    if left == "partial":
        (folder / "zarr.0a1b.partial").write_text("{")
    if left == "empty metadata":
        (folder / "zarr.json").write_text("")
    if left == "no settings":
        (folder / "zarr.json").write_text("{}")
        (folder / "settings.json.tmp").write_text("{")
    for how in ({"resume": True}, {"overwrite": True}):
        kept = tmp_path / "kept"
        shutil.copytree(folder, kept)
        assert pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3], **how).scales == (3,)
        shutil.rmtree(tmp_path / "s.zarr")
        kept.rename(folder)


def test_a_build_goes_on_with_the_same_images_whatever_they_are_called(labelled, tmp_path, monkeypatch):
    np.savez(tmp_path / "i.npz", images=labelled[0])
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "s.zarr"
    pi.build_index("i.npz", path, scales=[3])
    assert pi.build_index(tmp_path / "i.npz", path, scales=[3], resume=True).scales == (3,)
    others = labelled[0].copy()
    others[7] = 255 - others[7]
    with pytest.raises(InputError, match=r"other settings \(images\)"):
        pi.build_index(others, path, scales=[3], resume=True)
    # To overwrite as well is to start anew then.
    pi.build_index(others, path, scales=[3], resume=True, overwrite=True)
    assert (pi.open_index(path).training.read(7, 8) == others[7]).all()


def test_what_was_appended_is_not_taken_for_other_images(small, labelled):
    images = labelled[0]
    pi.append(small.path, images[25:32])
    assert len(pi.append(small.path, images[25:32], resume=True).training) == 32  # was done already
    others = images[25:32].copy()
    others[5] = 255 - others[5]
    assert len(pi.append(small.path, others, resume=True).training) == 39


def test_an_unfinished_append_keeps_scales_from_being_added(small, labelled):
    with pytest.raises(ZeroDivisionError):
        pi.append(small.path, labelled[0][25:], progress=lambda *_: 1 / 0)
    with pytest.raises(OutputExistsError, match="unfinished build is there; go on with that"):
        pi.add_scales(small.path, [7])
    assert len(pi.append(small.path, labelled[0][25:], resume=True).training) == 40


def test_added_scales_are_those_of_one_build_also_by_a_schedule(labelled, tmp_path):
    """How long codes are depends on the noise at which a scale is used, and so on all scales."""
    images, locality = np.tile(labelled[0], (2, 1, 1, 1)), [3, 3, 5, 5, 7, 7, 9, 9]
    together = pi.build_index(images, tmp_path / "a.zarr", scales=[3, 9], locality=locality, seed=1)
    one = pi.build_index(images, tmp_path / "b.zarr", scales=[3], locality=locality, seed=1)
    both = pi.add_scales(one.path, 9, seed=1)
    assert both.scale(9).attributes["pca_dims"] == together.scale(9).attributes["pca_dims"]
    assert both.locality == together.locality
    assert both.locality.scales == (3, 3, 3, 3, 9, 9, 9, 9)
    assert both.info()["scales"] == [3, 9]
    assert pi.build_index(images, one.path, scales=[3], locality=locality, seed=1, resume=True).scales == (
        3,
        9,
    )


def test_a_scale_that_was_begun_with_other_settings_is_begun_anew(small, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(ScaleBuild, "_merge", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pi.add_scales(small.path, [7], pca_dims=8, lists=10)
        held = workdir.free_bytes(small.path)
    usage = shutil.disk_usage(small.path)
    assert held > usage.free  # what is there counts as free: it is used, or removed
    scale = pi.add_scales(small.path, [7], pca_dims=6, lists=12).scale(7)
    assert (scale.attributes["pca_dims"], scale.attributes["lists"]) == (6, 12)
    assert pi.verify(small.path).whole


@pytest.mark.parametrize(
    ("given", "words"), [({"seed": -1}, "seed: must be"), ({"pca_dims": "8"}, "pca_dims: must be")]
)
def test_settings_of_scales_that_make_no_sense(small, given, words):
    with pytest.raises(InputError, match=words):
        pi.add_scales(small.path, [7], **given)


def test_a_lost_scale_is_missed_and_can_be_added_again(labelled, tmp_path):
    """Without it the schedule would be moved to other scales, and images would be others."""
    store = pi.build_index(labelled[0], tmp_path / "s.zarr", locality=[3, 3, 5, 7])
    shutil.rmtree(store.path / "scales" / "k007")
    found = pi.open_index(store.path)
    assert found.locality == store.locality
    with pytest.raises(StoreError, match="k007: is missing; add it again"):
        found.scale(7)
    assert pi.add_scales(store.path, [7]).scales == (3, 5, 7)
    assert pi.verify(store.path).whole


def test_what_an_earlier_build_left_running_does_no_harm(labelled, tmp_path, monkeypatch):
    """On a worker whose client is lost, while another build of the same settings has begun there."""
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 20_000)
    monkeypatch.setattr(shards_module, "PIECE_BYTES", 0)
    path, left = tmp_path / "s.zarr", []

    def lost(self, shard, progress=None):
        left.append(pickle.loads(pickle.dumps(self)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ScaleBuild, "encode", lost)
        with pytest.raises(KeyboardInterrupt):
            pi.build_index(labelled[0], path, scales=[3], memory=10**9)
    real = ScaleBuild.missing

    def meanwhile(self):
        for stage in ("train", "encode", "merge"):
            with pytest.raises(PatchIndexError, match="is not of this build"):
                getattr(left[0], stage)(*([0] if stage == "encode" else []))
        return real(self)

    monkeypatch.setattr(ScaleBuild, "missing", meanwhile)
    pi.build_index(labelled[0], path, scales=[3], memory=10**10, overwrite=True)
    assert len(left) == 1
    assert pi.verify(path).whole


def test_shards_are_kept_when_the_images_are_called_otherwise(labelled, tmp_path, monkeypatch):
    np.savez(tmp_path / "i.npz", images=labelled[0])
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(ScaleBuild, "_merge", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pi.build_index("i.npz", tmp_path / "s.zarr", scales=[3])
    names = []
    pi.build_index(
        tmp_path / "i.npz",
        tmp_path / "s.zarr",
        scales=[3],
        resume=True,
        progress=lambda n, *_: names.append(n),
    )
    assert not any("training" in name or "assigning" in name for name in names)


def test_to_resume_and_overwrite_is_to_start_anew_with_other_settings(labelled, tmp_path, monkeypatch):
    path = tmp_path / "s.zarr"
    with monkeypatch.context() as patched:
        patched.setattr(ScaleBuild, "_merge", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pi.build_index(labelled[0], path, scales=[3])
    with pytest.raises(InputError, match=r"other settings \(pca_dims\)"):
        pi.build_index(labelled[0], path, scales=[3], pca_dims=5, resume=True)
    found = pi.build_index(labelled[0], path, scales=[3], pca_dims=5, resume=True, overwrite=True)
    assert found.scale(3).pca.dims == 5


@pytest.mark.parametrize("removed", ["the unfinished build", "the old store"])
def test_what_was_half_removed_is_no_store_and_in_nobodys_way(small, labelled, monkeypatch, removed):
    """Killed while it removes: whatever is left has a name that only says so."""
    real = shutil.rmtree

    def half(folder, *arguments, **options):
        if str(folder).endswith(".removed"):
            for name in ("settings.json", "manifest.json", "zarr.json"):
                (Path(folder) / name).unlink(missing_ok=True)
            raise KeyboardInterrupt
        real(folder, *arguments, **options)

    if removed == "the unfinished build":
        with monkeypatch.context() as patched:
            patched.setattr(ScaleBuild, "_merge", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                pi.build_index(labelled[0], small.path, scales=[3], overwrite=True)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            pi.build_index(labelled[0], small.path, scales=[3], overwrite=True, seed=1)
    assert pi.open_index(small.path).scales == ((3, 5) if removed == "the unfinished build" else (3,))
    small.path.rename(small.path.with_name("elsewhere"))
    assert pi.build_index(labelled[0], small.path, scales=[3]).scales == (3,)
    assert sorted(path.name for path in small.path.parent.iterdir()) == ["elsewhere", "s.zarr"]


def test_a_damaged_store_can_be_overwritten(small, labelled):
    (small.path / "zarr.json").write_text("{")
    with pytest.raises(StoreError):
        pi.build_index(labelled[0], small.path, scales=[3])
    assert pi.build_index(labelled[0], small.path, scales=[3], overwrite=True).scales == (3,)


def test_a_scale_that_is_open_outlives_its_store_or_says_so(small, labelled):
    machine = pi.ScoreMachine(small, estimator="topk")
    scale = small.scale(3)
    pi.build_index(labelled[0][15:], small.path, scales=[3], overwrite=True)
    assert sum(len(ids) for _, ids, _ in scale.members()) == scale.attributes["patches"]
    with pytest.raises(StoreError, match="was replaced since it was opened"):
        machine.posterior_mean(torch.zeros(1, 1, 14, 14), 0.5, k=3)


def test_waiting_for_another_process_is_told_and_ends(small, monkeypatch):
    scale = ScaleBuild(small.path, small.geometry(7), 8, 10, 0, torch.device("cpu"), "it")
    monkeypatch.setattr(stages, "POLL", 1)
    monkeypatch.setattr(stages, "LONGEST_WAIT", 2)
    told = []
    with scale._alone(), pytest.raises(PatchIndexError, match="another process has been at it"):
        scale.begin(lambda name, *_: told.append(name))
    assert told == ["k = 7: waiting for another process"] * 2


def alike(n):
    """Images most of whose patches are the same."""
    images = np.zeros((n, 20, 20, 1), np.uint8)
    images[:, 8:13, 8:13] = np.random.default_rng(0).integers(0, 256, (n, 5, 5, 1))
    return images


def test_a_list_that_is_larger_than_what_is_merged_at_a_time(tmp_path, monkeypatch):
    images, labels = alike(60), np.arange(60) % 3
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 5000)
    monkeypatch.setattr(shards_module, "PIECE_BYTES", 0)
    real = Shards.merged

    def all_at_once(self, others=None):
        self._bytes = 1 << 30
        return real(self, others)

    with monkeypatch.context() as patched:
        patched.setattr(Shards, "merged", all_at_once)
        straight = pi.build_index(images, tmp_path / "a.zarr", scales=[3], labels=labels)
    store = pi.build_index(images, tmp_path / "b.zarr", scales=[3], labels=labels)
    assert store.scale(3).list_sizes().max() * (store.scale(3).pca.dims + 8) > 50 * 5000
    for mine, its in zip(lists_of(store, 3), lists_of(straight, 3), strict=True):
        np.testing.assert_array_equal(mine[0], its[0])
        np.testing.assert_array_equal(mine[1], its[1])
    for name in ("list_counts", "list_means", "list_variances", "list_checksums"):
        np.testing.assert_array_equal(
            *(zarr.open_group(index.path / "scales/k003")[name][:] for index in (store, straight))
        )
    assert pi.verify(store.path).whole
    pi.append(store.path, alike(70)[60:], labels=np.zeros(10, int))
    assert pi.verify(store.path).whole


def test_merging_takes_no_more_memory_for_more_patches(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 50_000)
    monkeypatch.setattr(shards_module, "PIECE_BYTES", 0)
    peaks, real = [], ScaleBuild._merge

    def traced(self, progress):
        tracemalloc.start()
        try:
            return real(self, progress)
        finally:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    monkeypatch.setattr(ScaleBuild, "_merge", traced)
    for n in (500, 1500):  # so that pieces are full
        store = pi.build_index(alike(n), tmp_path / f"{n}.zarr", scales=[3], lists=20, pca_dims=8)
    largest = int(store.scale(3).list_sizes().max()) * 16
    assert largest > 3e6
    assert peaks[1] < peaks[0] + largest / 8


def test_a_url_is_no_place_to_build_at(labelled):
    with pytest.raises(InputError, match="is a URL"):
        pi.build_index(labelled[0], "s3://bucket/s.zarr", scales=[3])
    assert not os.path.exists("s3:")
