"""The file names of a store's images: built, appended, resumed, and shown."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image
from stores import interrupted

import patchindex as pi
from patchindex.errors import StoreError
from patchindex.store.checksums import write_manifest


@pytest.fixture(scope="module")
def folders(real_images, tmp_path_factory):
    """Two folders of image files in two sub-folders, and the pixels of each file by its name."""
    root, pixels = tmp_path_factory.mktemp("folders"), {}
    for i, image in enumerate(real_images(10, 12)[0][..., 0]):
        part, name = ("old", "new")[i // 7], f"{('zebra', 'ant')[i % 2]}/{i}.png"
        path = root / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        pixels[name] = image
    return root, pixels


def assert_named(index, pixels):
    """Check that each training image has the name of the file with its pixels."""
    names = index.image_names(index.training.source_ids)
    assert sorted(names) == sorted(pixels)
    for image, name in zip(index.training.read(0, len(names))[..., 0], names, strict=True):
        np.testing.assert_array_equal(image, pixels[name])


@pytest.mark.parametrize("labels", [None, "folders"])
def test_a_store_keeps_the_names_of_its_files_and_append_adds_names(folders, tmp_path, labels):
    root, pixels = folders
    path = tmp_path / "s.zarr"
    index = pi.build_index(pi.open_images(root / "old", labels=labels), path, scales=[3])
    old = {name: image for name, image in pixels.items() if int(name.split("/")[1][:-4]) < 7}
    assert_named(index, old)
    assert index.image_names([0, 6]) == ["ant/1.png", "zebra/6.png"]
    index = pi.append(path, root / "new")
    assert_named(index, pixels)
    assert index.image_names([0, 6, 7]) == ["ant/1.png", "zebra/6.png", "ant/7.png"]
    assert index.info()["named_images"] == 10
    assert pi.verify(path).whole
    assert_named(pi.build_index(index.training.in_source_order(), tmp_path / "t.zarr", scales=[3]), pixels)


def test_images_without_names_are_appended_to_images_with_names_and_the_other_way(
    folders, real_images, tmp_path
):
    root, _ = folders
    images = real_images(2, 12, skip=50)[0]
    index = pi.append(pi.build_index(root / "old", tmp_path / "a.zarr", scales=[3]).path, images)
    assert index.image_names([6, 7, 8]) == ["zebra/6.png", "", ""]
    assert index.info()["named_images"] == 7
    index = pi.append(pi.build_index(images, tmp_path / "b.zarr", scales=[3]).path, root / "new")
    assert index.image_names([1, 2]) == ["", "ant/7.png"]
    assert pi.verify(index.path).whole


@pytest.mark.parametrize("stage", ["images", "k = 3: merging"])
def test_an_interrupted_build_and_append_keep_all_names(folders, tmp_path, stage):
    root, pixels = folders
    path = tmp_path / "s.zarr"
    interrupted(pi.build_index, root / "old", path, scales=[3], at=stage)
    pi.build_index(root / "old", path, scales=[3], resume=True)
    interrupted(pi.append, path, root / "new", at=stage)
    assert_named(pi.append(path, root / "new", resume=True), pixels)


def test_a_store_without_names_opens_as_before(folders, tmp_path):
    path = pi.build_index(folders[0] / "old", tmp_path / "s.zarr", scales=[3]).path
    for name in ("image_names", "image_name_bounds"):
        shutil.rmtree(path / name)
    with pytest.raises(StoreError, match="image_name"):  # the manifest names the files
        pi.open_index(path)
    write_manifest(path)
    index = pi.open_index(path)
    assert index.image_names([0, 1]) == ["", ""]
    assert pi.verify(path).whole
    assert pi.append(path, folders[0] / "new").image_names([6, 7]) == ["", "ant/7.png"]


def test_appended_copies_are_named(folders, tmp_path):
    root, _ = folders
    shutil.copytree(root / "new", tmp_path / "new")
    shutil.copy(root / "old" / "zebra" / "4.png", tmp_path / "new" / "copy.png")
    shutil.copy(root / "old" / "zebra" / "4.png", tmp_path / "new" / "zebra" / "twice.png")
    index = pi.build_index(root / "old", tmp_path / "s.zarr", scales=[3])
    index = pi.append(index.path, tmp_path / "new")
    equal = index.attributes["settings"]["appended"][0]["equal"]
    assert [index.image_names(pair) for pair in equal] == [
        ["copy.png", "zebra/4.png"],
        ["zebra/twice.png", "zebra/4.png"],
    ]


def test_damaged_images_are_named(folders, tmp_path):
    path = pi.build_index(folders[0] / "old", tmp_path / "s.zarr", scales=[3]).path
    file = path / "images/c/0/0/0/0"
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"images 0 \(ant/1.png\) to 6 \(zebra/6.png\) are damaged"):
        pi.open_index(path).check_images(0, 7)
