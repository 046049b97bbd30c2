"""What a build must never do: lose what a user has, or leave behind what it could not use."""

import errno
import os
from collections import namedtuple

import numpy as np
import pytest
import torch
import zarr

import patchindex as pi
from patchindex.build import workdir as workdir
from patchindex.build.shards import Shards
from patchindex.errors import InputError, OutputExistsError, PatchIndexError
from patchindex.store.raw import RawWriter


def images(n=8):
    return np.random.default_rng(0).integers(0, 256, (n, 12, 12), np.uint8)


def test_what_appears_at_the_final_path_during_a_build_stays(tmp_path):
    path = tmp_path / "s.zarr"

    def appear(stage, done, total):
        path.mkdir(exist_ok=True)
        (path / "precious.txt").write_text("keep me")

    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="appeared during the build"):
            pi.build_index(images(), path, (3,), progress=appear, overwrite=overwrite)
        assert (path / "precious.txt").read_text() == "keep me"
        (path / "precious.txt").unlink()
        path.rmdir()
    # The work is not lost: it is there to be resumed.
    assert pi.build_index(images(), path, (3,), resume=True).scales == (3,)


def test_a_folder_that_is_no_unfinished_build_is_not_overwritten(tmp_path):
    building = tmp_path / "s.zarr.building"
    building.mkdir()
    (building / "mine.txt").write_text("keep me")
    with pytest.raises(OutputExistsError, match="no unfinished build"):
        pi.build_index(images(), tmp_path / "s.zarr", (3,), overwrite=True)
    assert (building / "mine.txt").read_text() == "keep me"


def test_an_interrupted_overwrite_is_resumed(tmp_path):
    path = tmp_path / "s.zarr"
    pi.build_index(images(), path, (3,))

    def interrupt(stage, done, total):
        if stage.startswith("k = 5:"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pi.build_index(images(), path, (3, 5), overwrite=True, progress=interrupt)
    assert pi.open_index(path).scales == (3,)
    assert pi.build_index(images(), path, (3, 5), overwrite=True, resume=True).scales == (3, 5)
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.zarr"]


def test_a_damaged_image_found_during_the_build_leaves_nothing(tmp_path):
    class Damaged(pi.ImageSource):
        reads = 0

        def _read(self, index):
            self.reads += 1
            if self.reads > 1:  # the first read is of a sample, for the settings
                raise InputError("is damaged", where="image 7")
            return np.zeros(
                (len(range(8)[index]) if isinstance(index, slice) else len(index), 12, 12, 1), np.uint8
            )

    with pytest.raises(InputError, match="damaged"):
        pi.build_index(Damaged("test", (8, 12, 12, 1)), tmp_path / "s.zarr", (3,))
    assert list(tmp_path.iterdir()) == []


def test_a_noise_schedule_must_stay_inside_zero_and_one():
    machine = pi.ScoreMachine(images(), machine="IS", noise=lambda t: 1.5)
    with pytest.raises(InputError, match="beta"):
        machine.posterior_mean(torch.zeros(1, 1, 12, 12), 0.5)


@pytest.mark.parametrize("kind", ["folder", "file", "other zarr group"])
def test_what_is_no_store_is_never_overwritten(labelled, tmp_path, kind):
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
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
    with pytest.raises(InputError, match="not a patchindex store"):
        pi.open_index(path)


def test_another_build_of_the_same_store_is_refused(labelled, tmp_path):
    path = tmp_path / "s.zarr"

    def second(stage, done, total):
        with pytest.raises(InputError, match="another build of it is running"):
            pi.build_index(labelled[0], path, scales=[3], resume=True)
        second.calls += 1

    second.calls = 0
    pi.build_index(labelled[0], path, scales=[3], progress=second)
    assert second.calls > 1


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(workdir.shutil, "disk_usage", lambda path: usage(10**6, 0, 10**5))
    with pytest.raises(InputError, match=r"may need 0\.00 GiB there, and 0\.00 are free"):
        pi.build_index(images(100), tmp_path / "s.zarr", (3, 5))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("what", ["images", "shard", "index"])
def test_a_disk_that_fails_leaves_a_build_to_be_resumed(tmp_path, monkeypatch, what, code):
    real, calls = (Shards.write if what == "shard" else RawWriter.write), 0

    def failing(self, *arguments):
        nonlocal calls
        if what == "shard" or self._name == {"images": "images", "index": "faiss"}[what]:
            calls += 1
            if calls > 1 or what != "index":
                raise OSError(code, os.strerror(code))
        return real(self, *arguments)

    path = tmp_path / "s.zarr"
    with monkeypatch.context() as patched:
        patched.setattr(Shards if what == "shard" else RawWriter, "write", failing)
        words = "cannot be written or read" if code == errno.EIO else "the disk is full; free some"
        with pytest.raises(PatchIndexError, match=f"{words}.*resume=True") as caught:
            pi.build_index(images(), path, (3,))
    assert caught.value.exit_code == 1
    assert not path.exists()
    assert pi.build_index(images(), path, (3,), resume=True).scales == (3,)
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.zarr"]


def test_a_folder_of_images_that_vanishes_leaves_nothing(tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(images()):
        Image.fromarray(image).save(folder / f"{i}.png")
    source = pi.open_images(folder)
    (folder / "5.png").unlink()
    with pytest.raises(InputError, match=r"5\.png: is not there any more"):
        pi.build_index(source, tmp_path / "s.zarr", (3,))
    assert [entry.name for entry in tmp_path.iterdir()] == ["images"]
