"""Builds that are interrupted and resumed."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import zarr
from stores import interrupted, names_in, search_everything, stages_of

import patchindex as pi
from patchindex.build import BuildSettings, plan_build
from patchindex.build.scale import ScaleBuild
from patchindex.build.workdir import build_id_of
from patchindex.errors import InputError, OutputExistsError, PatchIndexError, SourceNotFoundError
from patchindex.geometry import Geometry

SETTINGS = {"scales": (3, 5), "seed": 2}


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize(
    ("stage", "after"), [("training", 0), ("assigning", 0), ("assigning", 2), ("merging", 0)]
)
def test_a_resumed_build_equals_an_uninterrupted_one(labelled, tmp_path, small_shards, k, stage, after):
    images, labels = labelled
    path = tmp_path / "s.zarr"
    straight, stages = stages_of(pi.build_index, images, tmp_path / "a.zarr", labels=labels, **SETTINGS)
    shards = stages.count(f"k = {k}: assigning patches")
    assert shards > 2
    interrupted(pi.build_index, images, path, labels=labels, **SETTINGS, at=f"k = {k}: {stage}", after=after)
    assert not path.exists()
    with pytest.raises(SourceNotFoundError):
        pi.open_index(path)
    with pytest.raises(OutputExistsError, match="unfinished build"):
        pi.build_index(images, path, labels=labels, **SETTINGS)
    resumed, stages = stages_of(pi.build_index, images, path, labels=labels, **SETTINGS, resume=True)
    # Complete stages are not repeated.
    assert "images" not in stages
    assert any(name.startswith("k = 3:") for name in stages) == (k == 3)
    assert any(name.startswith(f"k = {k}: training") for name in stages) == (stage == "training")
    left = 0 if stage == "merging" else shards - after
    assert stages.count(f"k = {k}: assigning patches") == left
    assert names_in(tmp_path) == ["a.zarr", "s.zarr"]
    for scale in (3, 5):
        for mine, its in zip(
            search_everything(resumed, scale), search_everything(straight, scale), strict=True
        ):
            np.testing.assert_array_equal(mine, its)
    assert resumed.attributes["fingerprint"] == straight.attributes["fingerprint"]


def test_a_build_that_is_interrupted_while_it_writes_images_resumes(labelled, tmp_path):
    images, labels = labelled
    path = tmp_path / "s.zarr"
    interrupted(pi.build_index, images, path, labels=labels, **SETTINGS, at="images")
    assert not path.exists()
    index = pi.build_index(images, path, labels=labels, **SETTINGS, resume=True)
    np.testing.assert_array_equal(index.training.read(0, 40), images[index.training.source_ids])


def test_source_ids_without_data_are_written_again(labelled, tmp_path, monkeypatch):
    """A build that is killed between the metadata and the data of its last array leaves only the metadata."""
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


def test_resume_without_an_unfinished_build_builds(labelled, tmp_path):
    assert pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3], resume=True).scales == (3,)


def test_resume_of_a_finished_store_changes_nothing(labelled, tmp_path):
    images, labels = labelled
    made = pi.build_index(images, tmp_path / "s.zarr", labels=labels, **SETTINGS)

    def files():
        return {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in made.path.rglob("*") if f.is_file()}

    before = files()
    again, stages = stages_of(pi.build_index, images, made.path, labels=labels, **SETTINGS, resume=True)
    assert again.attributes == made.attributes
    assert (files(), stages) == (before, [])


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
        ({"images": 1}, "images"),
    ],
)
def test_resume_with_other_settings_is_refused(labelled, tmp_path, change, name):
    images, labels = labelled
    given = {"images": images, "scales": (3,), "labels": labels}
    interrupted(pi.build_index, path=tmp_path / "unfinished.zarr", **given, at="k = 3:")
    pi.build_index(path=tmp_path / "finished.zarr", **given)
    if name == "images":
        change = {"images": 255 - images}
    for store in ("unfinished.zarr", "finished.zarr"):
        with pytest.raises(InputError, match=rf"other settings \([^)]*{name}"):
            pi.build_index(path=tmp_path / store, **given | change, resume=True)
    assert names_in(tmp_path) == ["finished.zarr", "unfinished.zarr.building"]


def test_a_stage_of_an_earlier_build_does_no_harm(labelled, tmp_path, small_shards):
    """A worker may still run a stage of a build that was started again."""
    path, folder, refused = tmp_path / "s.zarr", tmp_path / "s.zarr.building", []
    interrupted(pi.build_index, labelled[0], path, scales=[3], at="k = 3: assigning")
    (plan,) = plan_build(pi.open_images(labelled[0]), BuildSettings([3]))[0].scales
    geometry = Geometry.of("ELS", 3, (14, 14), "valid")
    earlier = ScaleBuild(
        folder, geometry, plan, seed=0, device=torch.device("cpu"), build_id=build_id_of(folder)
    )
    assert earlier.missing()

    def meanwhile(stage, done, total):
        if "assigning" in stage and not refused:
            for name, arguments in (("train", []), ("encode", [0]), ("merge", [])):
                with pytest.raises(PatchIndexError, match="belongs to another build"):
                    getattr(earlier, name)(*arguments)
                refused.append(name)

    pi.build_index(labelled[0], path, scales=[3], overwrite=True, progress=meanwhile)
    assert refused == ["train", "encode", "merge"]
    assert pi.verify(path).whole
