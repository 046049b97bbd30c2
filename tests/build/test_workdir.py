"""Existing outputs of a build, the replacement of stores, and locks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from stores import interrupted, names_in

import patchindex as pi
from patchindex.build.workdir import (
    ExistingOutput,
    existing_append,
    existing_output,
    locked,
    real_path,
    working_directory,
)
from patchindex.errors import InputError, OutputExistsError, SourceNotFoundError, StoreError

NEW, RESUME, FINISHED = ExistingOutput
EXISTS, UNFINISHED, OTHER = "exists already", "an unfinished build is there", "other settings"


@pytest.fixture(scope="module")
def built(labelled, tmp_path_factory):
    """The path of a store, which tests copy."""
    path = tmp_path_factory.mktemp("built") / "s.zarr"
    return pi.build_index(labelled[0][:25], path, scales=[3, 5], lists=60).path


@pytest.fixture
def small(built, tmp_path):
    """A store that a test may change."""
    return pi.open_index(shutil.copytree(built, tmp_path / "s.zarr"))


def changed(settings):
    """Settings of a build of other images: of another seed, say."""
    return settings | {"seed": 7}


# The decision.

# For a store and an unfinished build of the same or of other settings, or none: the outcome without options,
# with resume, with overwrite, and with both.
OUTCOMES = {
    (None, None): (NEW, NEW, NEW, NEW),
    (None, "same"): (UNFINISHED, RESUME, NEW, RESUME),
    (None, "other"): (UNFINISHED, OTHER, NEW, NEW),
    ("same", None): (EXISTS, FINISHED, NEW, FINISHED),
    ("same", "same"): (EXISTS, FINISHED, NEW, RESUME),
    ("same", "other"): (EXISTS, FINISHED, NEW, NEW),
    ("other", None): (EXISTS, OTHER, NEW, NEW),
    ("other", "same"): (EXISTS, OTHER, NEW, RESUME),
    ("other", "other"): (EXISTS, OTHER, NEW, NEW),
}


@pytest.mark.parametrize(("store", "unfinished"), list(OUTCOMES))
def test_a_build_starts_resumes_or_is_refused(small, store, unfinished):
    settings = small.attributes["settings"]
    if store is None:
        shutil.rmtree(small.path)
    wanted = changed(settings) if store == "other" else settings
    if unfinished is not None:
        begun = wanted if unfinished == "same" else wanted | {"lists": 3}
        with working_directory(small.path, begun, NEW):
            pass
    options = ({}, {"resume": True}, {"overwrite": True}, {"resume": True, "overwrite": True})
    for given, outcome in zip(options, OUTCOMES[store, unfinished], strict=True):
        if isinstance(outcome, str):
            with pytest.raises(InputError, match=outcome):
                existing_output(small.path, wanted, **given)
        else:
            assert existing_output(small.path, wanted, **given) is outcome


@pytest.mark.parametrize(
    ("unfinished", "resume", "outcome"),
    [
        (None, False, NEW),
        (None, True, NEW),
        ("same", False, UNFINISHED),
        ("same", True, RESUME),
        ("other", False, UNFINISHED),
        ("other", True, r"an unfinished build of other settings \(seed\) is there"),
    ],
)
def test_an_append_starts_resumes_or_is_refused(small, unfinished, resume, outcome):
    settings = small.attributes["settings"] | {"appended": [{"digest": "0"}]}
    if unfinished is not None:
        with working_directory(small.path, settings if unfinished == "same" else changed(settings), NEW):
            pass
    if isinstance(outcome, str):
        with pytest.raises(OutputExistsError, match=outcome):
            existing_append(small.path, settings, resume=resume)
    else:
        assert existing_append(small.path, settings, resume=resume) is outcome


def test_the_name_of_the_source_is_not_compared(labelled, tmp_path, monkeypatch):
    np.savez(tmp_path / "i.npz", images=labelled[0])
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "s.zarr"
    pi.build_index("i.npz", path, scales=[3])
    assert pi.build_index(tmp_path / "i.npz", path, scales=[3], resume=True).scales == (3,)
    others = labelled[0].copy()
    others[7] = 255 - others[7]
    with pytest.raises(InputError, match=r"other settings \(images\)"):
        pi.build_index(others, path, scales=[3], resume=True)
    pi.build_index(others, path, scales=[3], resume=True, overwrite=True)
    assert (pi.open_index(path).training.read(7, 8) == others[7]).all()


# Other files and folders at the paths of a build.


@pytest.mark.parametrize("kind", ["folder", "file", "other zarr group"])
def test_only_a_store_is_overwritten(labelled, tmp_path, kind):
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("thesis")
    elif kind == "folder":
        path.mkdir()
        (path / "thesis.tex").write_text("thesis")
    else:
        zarr.open_group(path, mode="w", attributes={"mine": 1})
    for option in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(OutputExistsError):
            pi.build_index(labelled[0], path, scales=[3], **option)
    assert names_in(tmp_path) == ["precious"]
    with pytest.raises(InputError, match="not a patchindex store"):
        pi.open_index(path)


def test_files_that_appear_at_the_path_during_a_build_stay(labelled, tmp_path):
    path = tmp_path / "s.zarr"

    def appear(stage, done, total):
        path.mkdir(exist_ok=True)
        (path / "precious.txt").write_text("keep me")

    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="appeared during the build"):
            pi.build_index(labelled[0], path, [3], progress=appear, overwrite=overwrite)
        assert (path / "precious.txt").read_text() == "keep me"
        shutil.rmtree(path)
    assert pi.build_index(labelled[0], path, [3], resume=True).scales == (3,)


def test_a_foreign_folder_at_the_working_path_stays(labelled, tmp_path):
    building = tmp_path / "s.zarr.building"
    building.mkdir()
    (building / "mine.txt").write_text("keep me")
    with pytest.raises(OutputExistsError, match="not an unfinished build"):
        pi.build_index(labelled[0], tmp_path / "s.zarr", [3], overwrite=True)
    assert (building / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"zarr.0a1b.partial": "{"},
        {"zarr.json": ""},
        {"zarr.json": "{}", "settings.json.tmp": "{"},
    ],
)
@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_a_build_that_was_killed_at_its_start_is_removed(labelled, tmp_path, files, option):
    folder = tmp_path / "s.zarr.building"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    assert pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3], **{option: True}).scales == (3,)
    assert names_in(tmp_path) == ["s.zarr"]


def test_a_damaged_store_can_be_overwritten(small, labelled):
    (small.path / "zarr.json").write_text("{")
    with pytest.raises(StoreError):
        pi.build_index(labelled[0], small.path, scales=[3])
    assert pi.build_index(labelled[0], small.path, scales=[3], overwrite=True).scales == (3,)


def test_a_url_is_refused(labelled):
    with pytest.raises(InputError, match="is a URL"):
        pi.build_index(labelled[0], "s3://bucket/s.zarr", scales=[3])
    assert not Path("s3:").exists()


# Replacing a store.


def test_an_interrupted_overwrite_keeps_the_old_store_and_continues(small, labelled):
    images = labelled[0][:20]
    interrupted(pi.build_index, images, small.path, [3, 7], overwrite=True, at="k = 7:")
    assert pi.open_index(small.path).scales == (3, 5)
    index = pi.build_index(images, small.path, [3, 7], overwrite=True, resume=True)
    assert (index.scales, len(index.training)) == ((3, 7), 20)
    interrupted(pi.build_index, images, small.path, [3], overwrite=True, at="k = 3:")
    assert len(pi.build_index(labelled[0], small.path, [3], overwrite=True).training) == 40
    assert names_in(small.path.parent) == ["s.zarr"]


def test_a_build_that_is_killed_between_two_renames_is_repaired(small, labelled, monkeypatch):
    """The old store has another name then, and the new one is not in its place."""
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
    with pytest.raises(SourceNotFoundError, match="resume=True"):
        pi.open_index(small.path)
    with pytest.raises(OutputExistsError, match="an unfinished build is there"):
        pi.append(small.path, labelled[0][25:])
    assert len(pi.open_index(small.path).training) == 25  # the old store is back
    assert len(pi.append(small.path, labelled[0][25:], resume=True).training) == 40
    assert names_in(small.path.parent) == ["s.zarr"]


@pytest.mark.parametrize("removed", ["the unfinished build", "the old store"])
def test_a_half_removed_folder_is_no_store_and_not_in_the_way(small, labelled, monkeypatch, removed):
    real = shutil.rmtree

    def half(folder, *arguments, **options):
        if str(folder).endswith(".removed"):
            for name in ("settings.json", "manifest.json", "zarr.json"):
                (Path(folder) / name).unlink(missing_ok=True)
            raise KeyboardInterrupt
        real(folder, *arguments, **options)

    if removed == "the unfinished build":
        interrupted(pi.build_index, labelled[0], small.path, scales=[3], overwrite=True, at="k = 3:")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            pi.build_index(labelled[0], small.path, scales=[3], overwrite=True, seed=1)
    assert pi.open_index(small.path).scales == ((3, 5) if removed == "the unfinished build" else (3,))
    small.path.rename(small.path.with_name("elsewhere"))
    assert pi.build_index(labelled[0], small.path, scales=[3]).scales == (3,)
    assert names_in(small.path.parent) == ["elsewhere", "s.zarr"]


# Several processes at one store.


@pytest.mark.parametrize("other", ["append", "add_scales", "tune", "build"])
def test_only_one_process_changes_a_store(small, labelled, other):
    images = labelled[0]
    calls = {
        "append": lambda: pi.append(small.path, images[30:]),
        "add_scales": lambda: pi.add_scales(small.path, 7),
        "tune": lambda: pi.tune(small.path),
        "build": lambda: pi.build_index(images, small.path, scales=[3], overwrite=True),
    }
    refused = []

    def meanwhile(*_):
        if not refused:
            with pytest.raises(InputError, match="another build of the store is running"):
                calls[other]()
            refused.append(other)

    found = pi.append(small.path, images[25:30], progress=meanwhile)
    assert refused == [other]
    assert len(found.training) == 30
    assert pi.verify(small.path).whole


def test_a_link_and_its_store_have_one_lock(small, labelled, tmp_path):
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "l.zarr"
    link.symlink_to(small.path)
    with locked(real_path(link)), pytest.raises(InputError, match="is running"):
        pi.add_scales(small.path, [7])
    assert len(pi.append(link, labelled[0][25:]).training) == 40
    pi.build_index(labelled[0], link, scales=[3], overwrite=True)
    assert link.is_symlink()
    assert names_in(link.parent) == ["l.zarr"]
    assert len(pi.open_index(small.path).training) == 40


@pytest.mark.parametrize("how", ["append", "overwrite"])
def test_an_open_store_that_is_replaced_is_not_mixed_with_the_new_one(small, labelled, how):
    small.scale(3)
    if how == "append":
        pi.append(small.path, labelled[0][25:])
    else:
        pi.build_index(labelled[0][15:], small.path, scales=[3, 5], lists=60, overwrite=True)
    with pytest.raises(StoreError, match="was replaced since it was opened; open it again"):
        small.scale(5)
    pi.open_index(small.path).scale(5)


def test_an_open_scale_stays_readable_when_its_store_is_replaced(small, labelled):
    machine, scale = pi.ScoreMachine(small, estimator="topk"), small.scale(3)
    pi.build_index(labelled[0][15:], small.path, scales=[3], overwrite=True)
    assert sum(len(ids) for _, ids, _ in scale.members()) == scale.attributes["patches"]
    with pytest.raises(StoreError, match="was replaced since it was opened"):
        machine.posterior_mean(torch.zeros(1, 1, 14, 14), 0.5, k=3)


def test_a_scale_of_another_store_or_locality_is_refused(small, labelled, tmp_path):
    other = pi.build_index(labelled[0][15:], tmp_path / "o.zarr", scales=[3, 5], lists=60)
    scales = small.path / "scales"
    (scales / "k003").rename(tmp_path / "k003")
    shutil.copytree(other.path / "scales/k003", scales / "k003")
    with pytest.raises(StoreError, match="of other images or of another locality"):
        pi.open_index(small.path).scale(3)
    assert [what for _, what in pi.verify(small.path).problems] == [
        "is of other images or of another locality scale"
    ]
    shutil.rmtree(scales / "k003")
    (scales / "k005").rename(scales / "k003")
    (tmp_path / "k003").rename(scales / "k005")
    for k in (3, 5):
        with pytest.raises(StoreError, match="of another locality"):
            pi.open_index(small.path).scale(k)
    assert not pi.verify(small.path).whole
