"""Builds that are interrupted, resumed, refused, or in the way of each other."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import zarr
from stores import assert_nothing_at, search_everything

import patchindex as pi
from patchindex.build import build as build_module
from patchindex.build import plan_build
from patchindex.build import shards as shards_module
from patchindex.build.scale import ScaleBuild
from patchindex.errors import InputError, OutputExistsError, SourceNotFoundError

SETTINGS = {"scales": (3, 5), "seed": 2}


def interrupt(monkeypatch, at, images, path, labels, stage="train", after=0, **settings):
    """Build, and fail when a stage of scale `at` begins, or what it is done with after some calls of it."""
    real = getattr(ScaleBuild, stage)
    calls = 0

    def failing(self, *arguments):
        nonlocal calls
        if self.k == at:
            calls += 1
            if calls > after:
                raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(ScaleBuild, stage, failing)
        with pytest.raises(KeyboardInterrupt):
            pi.build_index(images, path, labels=labels, **settings)


@pytest.mark.parametrize("at", [3, 5])
@pytest.mark.parametrize(
    ("stage", "after"), [("train", 0), ("encode", 0), ("encode", 2), ("merge", 0), ("_merge", 0)]
)
def test_an_interrupted_build_is_invisible_and_resume_makes_the_same_store(
    labelled, tmp_path, monkeypatch, at, stage, after
):
    images, labels = labelled
    path = tmp_path / "s.zarr"
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 20_000)  # several
    monkeypatch.setattr(shards_module, "PIECE_BYTES", 0)
    names = []
    straight = pi.build_index(
        images, tmp_path / "a.zarr", labels=labels, **SETTINGS, progress=lambda name, *_: names.append(name)
    )
    shards = names.count(f"k = {at}: assigning patches")
    assert shards > 2
    interrupt(monkeypatch, at, images, path, labels, stage, after, **SETTINGS)
    assert not path.exists()
    with pytest.raises(SourceNotFoundError):
        pi.open_index(path)
    with pytest.raises(OutputExistsError, match="unfinished build"):
        pi.build_index(images, path, labels=labels, **SETTINGS)
    names.clear()
    resumed = pi.build_index(
        images, path, labels=labels, **SETTINGS, resume=True, progress=lambda name, *_: names.append(name)
    )
    assert not any(name.startswith("images") for name in names)
    assert any(name.startswith("k = 3:") for name in names) == (at == 3)
    # What is whole is not done again.
    assert any("training" in name for name in names if name.startswith(f"k = {at}:")) == (stage == "train")
    left = 0 if "merge" in stage else shards - after
    assert names.count(f"k = {at}: assigning patches") == left
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "s.zarr"]
    for k in (3, 5):
        for mine, its in zip(search_everything(resumed, k), search_everything(straight, k), strict=True):
            np.testing.assert_array_equal(mine, its)
    assert resumed.attributes["fingerprint"] == straight.attributes["fingerprint"]


def test_a_build_interrupted_while_the_images_are_written_resumes(labelled, tmp_path, monkeypatch):
    images, labels = labelled
    path = tmp_path / "s.zarr"

    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pi.build_index(images, path, labels=labels, **SETTINGS, progress=stop)
    assert not path.exists()
    index = pi.build_index(images, path, labels=labels, **SETTINGS, resume=True)
    np.testing.assert_array_equal(index.training.read(0, 40), images[index.training.source_ids])


def test_numbers_that_have_their_metadata_only_are_written_again(labelled, tmp_path, monkeypatch):
    """As a build leaves them that is killed between the two files of the last array."""
    images, labels = labelled
    path = tmp_path / "s.zarr"
    real = zarr.Group.create_array

    def killed(group, name, **settings):
        made = real(group, name, **settings)
        if name == "source_ids":
            shutil.rmtree(group.store.root / name / "c")
            raise KeyboardInterrupt
        return made

    with monkeypatch.context() as patched:
        patched.setattr(zarr.Group, "create_array", killed)
        with pytest.raises(KeyboardInterrupt):
            pi.build_index(images, path, labels=labels, **SETTINGS)
    index = pi.build_index(images, path, labels=labels, **SETTINGS, resume=True)
    np.testing.assert_array_equal(index.training.source_ids, np.argsort(labels, kind="stable"))


def test_resume_with_nothing_there_is_a_build(labelled, tmp_path):
    assert pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3], resume=True).scales == (3,)


def test_resume_of_a_finished_store_does_nothing(labelled, tmp_path, monkeypatch):
    images, labels = labelled
    made = pi.build_index(images, tmp_path / "s.zarr", labels=labels, **SETTINGS)
    before = {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in made.path.rglob("*") if f.is_file()}
    monkeypatch.setattr(build_module, "ScaleBuild", None)
    again = pi.build_index(images, made.path, labels=labels, **SETTINGS, resume=True)
    assert again.attributes == made.attributes
    assert before == {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in made.path.rglob("*") if f.is_file()}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 3}, "seed"),
        ({"scales": (3, 7)}, "scales"),
        ({"machine": "bbELS"}, "machine"),
        ({"train_windows": "wrapped"}, "train_windows"),
        ({"pca_dims": 4}, "pca_dims"),
        ({"lists": 4}, "lists"),
        ({"labels": None}, "labels"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_resume_with_other_settings_is_refused(labelled, tmp_path, monkeypatch, change, name, finished):
    images, labels = labelled
    path = tmp_path / "s.zarr"
    settings = {"scales": (3,), "labels": labels}
    if finished:
        pi.build_index(images, path, **settings)
    else:
        interrupt(monkeypatch, 3, images, path, **settings)
    with pytest.raises(InputError, match=rf"other settings \([^)]*{name}"):
        pi.build_index(images, path, **{**settings, **change}, resume=True)
    assert path.exists() == finished


@pytest.mark.parametrize("finished", [True, False])
def test_resume_with_other_images_is_refused(labelled, tmp_path, monkeypatch, finished):
    images, _ = labelled
    path = tmp_path / "s.zarr"
    if finished:
        pi.build_index(images, path, scales=[3])
    else:
        interrupt(monkeypatch, 3, images, path, None, scales=[3])
    with pytest.raises(InputError, match=r"other settings \(images\)"):
        pi.build_index(255 - images, path, scales=[3], resume=True)


# What is in the way.


def test_a_store_that_is_there_is_replaced_only_when_asked(labelled, tmp_path):
    images, _ = labelled
    made = pi.build_index(images, tmp_path / "s.zarr", scales=[3])
    with pytest.raises(OutputExistsError, match="exists already"):
        pi.build_index(images[:20], made.path, scales=[3])
    assert len(pi.open_index(made.path).training) == 40
    assert len(pi.build_index(images[:20], made.path, scales=[3], overwrite=True).training) == 20
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


def test_a_failing_overwrite_leaves_the_old_store(labelled, tmp_path, monkeypatch):
    images, labels = labelled
    path = tmp_path / "s.zarr"
    pi.build_index(images, path, scales=[3])
    interrupt(monkeypatch, 3, images[:20], path, labels[:20], scales=[3], overwrite=True)
    assert len(pi.open_index(path).training) == 40
    # The next one starts anew over what the failed one left.
    assert len(pi.build_index(images[:10], path, scales=[3], overwrite=True).training) == 10


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scales": [3], "memory": "1M"}, "memory: the build may need"),
        ({"scales": [4]}, "k must be odd"),
        ({}, "scales"),
        ({"scales": [3], "labels": [1, 2]}, "2 labels for 40 images"),
        ({"scales": [3], "threads": 0}, "threads: must be 1 to 1024"),
        ({"scales": [3], "device": "tpu"}, "device"),
    ],
)
def test_a_refused_build_leaves_nothing(labelled, tmp_path, settings, words):
    path = tmp_path / "deep" / "s.zarr"
    with pytest.raises(InputError, match=words):
        pi.build_index(labelled[0], path, **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_build_within_its_budget_is_allowed(labelled, tmp_path):
    plan, _ = plan_build(pi.open_images(labelled[0]), [3])
    with pytest.raises(InputError, match="memory"):
        pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3], memory=plan.memory_bytes - 1)
    assert_nothing_at(tmp_path / "s.zarr")
    pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3], memory=plan.memory_bytes)


def test_a_build_is_resumed_with_another_budget_and_keeps_its_lists(real_images, tmp_path, monkeypatch):
    images = real_images(1500, 20)[0]  # 486 000 patches
    path = tmp_path / "s.zarr"
    source = pi.open_images(images)
    free = plan_build(source, [3])[0]
    less = free.memory_bytes - 1
    tight = plan_build(source, [3], memory=less)[0]
    assert tight.scales[0].lists < free.scales[0].lists
    interrupt(monkeypatch, 3, images, path, None, "encode", scales=[3], memory=less)
    index = pi.build_index(images, path, scales=[3], resume=True)
    assert index.scale(3).attributes["lists"] <= tight.scales[0].lists
    assert pi.build_index(images, path, scales=[3], resume=True, memory="1M").scales == (3,)
