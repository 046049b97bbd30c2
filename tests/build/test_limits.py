"""Builds that are refused for want of memory or disk, and disks that fail during a build."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections import namedtuple

import numpy as np
import pytest
from stores import assert_nothing_at, interrupted, names_in

import patchindex as pi
from patchindex.build import BuildSettings, free_bytes, plan_build
from patchindex.errors import InputError, PatchIndexError
from patchindex.store.raw import ChecksumWriter


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (8, 12, 12), np.uint8)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scales": [3], "memory": "1M"}, "memory: the build may need"),
        ({"scales": [4]}, "k must be odd"),
        ({}, "scales"),
        ({"scales": [3], "labels": [1, 2]}, "2 labels for 8 images"),
        ({"scales": [3], "threads": 0}, "threads: must be a whole number from 1 to 1024"),
        ({"scales": [3], "device": "tpu"}, "device"),
    ],
)
def test_a_refused_build_leaves_nothing(images, tmp_path, settings, words):
    with pytest.raises(InputError, match=words):
        pi.build_index(images, tmp_path / "deep" / "s.zarr", **settings)
    assert names_in(tmp_path) == []


def test_a_build_needs_no_more_memory_than_its_plan(images, tmp_path):
    path = tmp_path / "s.zarr"
    plan, _ = plan_build(pi.open_images(images), BuildSettings([3]))
    with pytest.raises(InputError, match="memory"):
        pi.build_index(images, path, scales=[3], memory=plan.memory_bytes - 1)
    assert_nothing_at(path)
    pi.build_index(images, path, scales=[3], memory=plan.memory_bytes)


def test_a_resumed_build_keeps_its_lists_whatever_its_memory_budget(real_images, tmp_path):
    images = real_images(1500, 20)[0]  # 486 000 patches
    path, source = tmp_path / "s.zarr", pi.open_images(images)
    free = plan_build(source, BuildSettings([3]))[0]
    tight = plan_build(source, BuildSettings([3]), memory=free.memory_bytes - 1)[0]
    assert tight.scales[0].lists < free.scales[0].lists
    interrupted(pi.build_index, images, path, [3], memory=free.memory_bytes - 1, at="k = 3: assigning")
    index = pi.build_index(images, path, scales=[3], resume=True)
    assert index.scale(3).attributes["lists"] <= tight.scales[0].lists
    assert pi.build_index(images, path, scales=[3], resume=True, memory="1M").scales == (3,)


def test_a_disk_that_is_too_small_is_refused_before_the_build(images, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, 10**4))
    with pytest.raises(InputError, match=r"may need 0\.00 GiB there, and 0\.00 are free"):
        pi.build_index(images, tmp_path / "s.zarr", (3, 5))
    assert names_in(tmp_path) == []


def test_free_space_is_measured_while_another_build_removes_its_files(tmp_path):
    folder, stop = tmp_path / "s.zarr.building" / "scales", threading.Event()

    def build():
        while not stop.is_set():
            folder.mkdir(parents=True)
            for number in range(30):
                (folder / f"{number}.tmp").touch()
            shutil.rmtree(folder.parent)

    thread = threading.Thread(target=build)
    thread.start()
    try:
        measured = [free_bytes(tmp_path / "s.zarr") for _ in range(2000)]
    finally:
        stop.set()
        thread.join()
    assert min(measured) > 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("file", ["images/c", "shards", "faiss/c"])
def test_a_build_resumes_after_a_disk_failure(images, tmp_path, monkeypatch, file, code):
    path, real = tmp_path / "s.zarr", ChecksumWriter.write

    def failing(self, data):
        if file in self.file.name:
            self.file.write(b"half")
            raise OSError(code, os.strerror(code))
        real(self, data)

    with monkeypatch.context() as patched:
        patched.setattr(ChecksumWriter, "write", failing)
        words = "cannot be written or read" if code == errno.EIO else "the disk is full; free some space"
        with pytest.raises(PatchIndexError, match=f"{words}.*resume=True") as caught:
            pi.build_index(images, path, (3,))
    assert caught.value.exit_code == 1
    assert not path.exists()
    assert pi.build_index(images, path, (3,), resume=True).scales == (3,)
    assert names_in(tmp_path) == ["s.zarr"]


def test_more_names_of_skipped_files_than_a_store_can_hold_are_refused_before_the_build(images, tmp_path):
    def source(files):
        found = pi.open_images(images)
        found.skipped = ("x" * 400,) * files
        return found

    with pytest.raises(InputError, match=r"the names of 100,000 skipped files .* over the limit of"):
        pi.build_index(source(100_000), tmp_path / "s.zarr", (3,))
    assert names_in(tmp_path) == []
    pi.build_index(source(75_000), tmp_path / "s.zarr", (3,))
    assert len(pi.open_index(tmp_path / "s.zarr").attributes["skipped"]) == 75_000
    with pytest.raises(InputError, match=r"the names of 85,000 skipped files"):
        pi.append(tmp_path / "s.zarr", source(10_000))
    assert names_in(tmp_path) == ["s.zarr"]


def test_a_damaged_image_that_is_found_during_the_build_leaves_nothing(tmp_path):
    class Damaged(pi.ImageSource):
        reads = 0

        def _read(self, index):
            self.reads += 1
            if self.reads > 1:  # the first read is the sample for the plan
                raise InputError("is damaged", where="image 7")
            count = len(range(8)[index]) if isinstance(index, slice) else len(index)
            return np.zeros((count, 12, 12, 1), np.uint8)

    with pytest.raises(InputError, match="damaged"):
        pi.build_index(Damaged("test", (8, 12, 12, 1)), tmp_path / "s.zarr", (3,))
    assert names_in(tmp_path) == []


def test_an_image_file_that_vanishes_leaves_nothing(images, tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    source = pi.open_images(folder)
    (folder / "5.png").unlink()
    with pytest.raises(InputError, match=r"5\.png: is not there any more"):
        pi.build_index(source, tmp_path / "s.zarr", (3,))
    assert names_in(tmp_path) == ["images"]
