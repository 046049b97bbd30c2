"""CelebA in the layouts in which people have it."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from PIL import Image

import patchindex as pi
from patchindex.errors import InputError

NAMES = [f"{i:06d}.jpg" for i in range(1, 13)]
SPLIT = [0] * 8 + [1] * 2 + [2] * 2
SMILING = [i % 3 == 0 for i in range(12)]
MALE = [i % 2 == 0 for i in range(12)]


@pytest.fixture(scope="module")
def faces(real_images):
    """Real images in the size of aligned faces."""
    images = real_images(12, 28, channels=3)[0]
    return [Image.fromarray(image).resize((178, 218)) for image in images]


def lists(csv):
    join = ",".join if csv else " ".join
    signs = [
        join([name, *("1" if bit else "-1" for bit in bits)])
        for name, *bits in zip(NAMES, SMILING, MALE, strict=True)
    ]
    parts = [join([name, str(part)]) for name, part in zip(NAMES, SPLIT, strict=True)]
    if csv:
        return ["image_id,partition", *parts], ["image_id,Smiling,Male", *signs]
    return parts, [
        "12",
        "Smiling Male ",
        *(line.replace(" -1", " -1").replace(" 1", "  1") for line in signs),
    ]


@pytest.fixture(params=["torchvision", "authors", "kaggle"])
def celeba(request, faces, tmp_path):
    layout = request.param
    root, csv = tmp_path / "celeba", layout == "kaggle"
    places = {"torchvision": ("", "", ""), "authors": ("Img", "Eval", "Anno"), "kaggle": ("", "", "")}[layout]
    for place in places:
        (root / place).mkdir(parents=True, exist_ok=True)
    folder = (
        tmp_path / "jpegs" if layout == "authors" else root / "img_align_celeba" / ("img_align_celeba" * csv)
    )
    folder.mkdir(parents=True)
    for name, face in zip(NAMES, faces, strict=True):
        face.save(folder / name, quality=95)
    if layout == "authors":
        with zipfile.ZipFile(root / "Img" / "img_align_celeba.zip", "w") as archive:
            for name in NAMES:
                archive.write(folder / name, f"img_align_celeba/{name}")
    suffix = ".csv" if csv else ".txt"
    for place, name, lines in zip(
        places[1:], ("list_eval_partition", "list_attr_celeba"), lists(csv), strict=True
    ):
        (root / place / f"{name}{suffix}").write_text("\n".join(lines) + "\n")
    return root


def test_the_split_to_train_with_is_the_default(celeba):
    source = pi.open_images(celeba, crop=148, resize=32)
    assert source.shape == (8, 32, 32, 3)
    assert source.labels is None
    for split, n in (("train", 8), ("valid", 2), ("test", 2), ("all", 12)):
        assert len(pi.open_images(celeba, split=split)) == n
    every = pi.open_images(celeba, split="all", crop=148, resize=32)
    np.testing.assert_array_equal(every[8:10], pi.open_images(celeba, split="valid", crop=148, resize=32)[:])


def test_faces_are_cropped_and_resized_antialiased(celeba, faces, tmp_path):
    source = pi.open_images(celeba, crop=148, resize=32)
    faces[3].save(tmp_path / "face.jpg", quality=95)
    with Image.open(tmp_path / "face.jpg") as image:
        plain = image.crop((15, 35, 163, 183)).resize((32, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(source[3], np.asarray(plain))


def test_attributes_are_labels(celeba):
    source = pi.open_images(celeba, labels="attr:Smiling", split="all")
    assert source.labels.tolist() == [int(bit) for bit in SMILING]
    assert source.label_names == ("not Smiling", "Smiling")
    both = pi.open_images(celeba, labels="attr:Male,Smiling", split="test")
    assert both.labels.tolist() == [int(m) + 2 * int(s) for m, s in zip(MALE, SMILING, strict=True)][10:]
    assert both.label_names == (
        "not Male, not Smiling",
        "Male, not Smiling",
        "not Male, Smiling",
        "Male, Smiling",
    )


def test_a_store_of_smiling_faces(celeba, tmp_path):
    source = pi.open_images(celeba, labels="attr:Smiling", crop=148, resize=16)
    index = pi.build_index(source, tmp_path / "s.zarr", scales=[3])
    assert index.attributes["labels"] == [0, 1]
    assert index.attributes["label_names"] == ["not Smiling", "Smiling"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"split": "tests"}, "split: there is no 'tests'; use train, valid, test, all"),
        ({"labels": "attr:Happy"}, "has no attribute Happy; use some of Smiling, Male"),
        ({"labels": "folders"}, "is not a folder of image files"),
        ({"labels": "attr:"}, "names no attribute"),
    ],
)
def test_what_there_is_not(celeba, how, words):
    with pytest.raises(InputError, match=words):
        pi.open_images(celeba, **how)


def test_lists_that_are_damaged_or_missing(celeba):
    partition = next(celeba.rglob("list_eval_partition.*"))
    whole = partition.read_text()
    for text, words in (
        ("\n".join(whole.splitlines()[:-1]), "does not list 1 of the images, .*000012.jpg first"),
        (whole.replace("000003.jpg", "000003.jpg 7"), "has a line of 3 columns, expected 2"),
        ("", "is empty"),
    ):
        partition.write_text(text)
        with pytest.raises(InputError, match=words):
            pi.open_images(celeba)
    partition.unlink()
    assert len(pi.open_images(celeba)) == 12
    with pytest.raises(InputError, match=r"has no list_eval_partition\.txt"):
        pi.open_images(celeba, split="test")
    next(celeba.rglob("list_attr_celeba.*")).unlink()
    if not (celeba / "Img").exists():
        assert len(pi.open_images(celeba)) == 12  # a folder of images like any other
    with pytest.raises(InputError, match="is not a folder of CelebA"):
        pi.open_images(celeba, labels="attr:Smiling")


def faces_in(celeba, faces):
    """Have the faces in a folder as well as in an archive, as torchvision leaves them."""
    folder = celeba / "img_align_celeba"
    inner = folder / "img_align_celeba"
    folder = inner if inner.exists() else folder
    folder.mkdir(exist_ok=True)
    for name, face in zip(NAMES, faces, strict=True):
        face.save(folder / name, quality=95)
    return folder


def test_a_folder_of_faces_comes_before_its_archive(celeba, faces):
    folder = faces_in(celeba, faces)
    (celeba / "img_align_celeba.zip").write_bytes(b"PK a download that was interrupted")
    source = pi.open_images(celeba, split="all", crop=148, resize=16)
    assert source.names == tuple(NAMES)
    images = source[:]
    for path in folder.iterdir():
        path.unlink()
    with zipfile.ZipFile(celeba / "img_align_celeba.zip", "w") as archive:
        for name, face in zip(NAMES, faces, strict=True):
            with archive.open(f"img_align_celeba/{name}", "w") as file:
                face.save(file, "JPEG", quality=95)
    again = pi.open_images(celeba, split="all", crop=148, resize=16)
    assert again.names == tuple(f"img_align_celeba/{name}" for name in NAMES)
    np.testing.assert_array_equal(again[:], images)


def test_faces_that_are_not_there(celeba, faces, refused):
    """As when an archive was unpacked in part."""
    folder = faces_in(celeba, faces)
    whole = pi.open_images(celeba, crop=148, resize=16)
    for name in ("000002.jpg", "000006.jpg", "000012.jpg"):
        (folder / name).unlink()
    with refused(folder, "2 of the 8 listed faces are missing, 000002.jpg first", "skip_bad=True"):
        pi.open_images(celeba)
    with refused(folder, "3 of the 12 listed faces"):
        pi.open_images(celeba, split="all")
    assert len(pi.open_images(celeba, split="valid")) == 2
    (folder / "000004.jpg").write_bytes(b"no image")
    source = pi.open_images(celeba, skip_bad=True, labels="attr:Smiling", crop=148, resize=16)
    assert source.skipped == ("000002.jpg", "000006.jpg", "000004.jpg")
    assert source.names == tuple(NAMES[i] for i in (0, 2, 4, 6, 7))
    assert source.labels.tolist() == [int(SMILING[i]) for i in (0, 2, 4, 6, 7)]
    np.testing.assert_array_equal(source[:], whole.read([0, 2, 4, 6, 7]))
    numbered = pi.open_images(celeba, skip_bad=True, labels=np.arange(8))
    assert numbered.labels.tolist() == [0, 2, 4, 6, 7]
    next(celeba.rglob("list_eval_partition.*")).unlink()
    with refused(folder, "3 of the 12 listed faces"):
        pi.open_images(celeba)


def test_a_face_that_is_there_twice(celeba, faces, refused):
    folder = faces_in(celeba, faces)
    (folder / "copy").mkdir()
    faces[0].save(folder / "copy" / "000001.jpg")
    with refused(folder, "has a face twice, 000001.jpg and copy/000001.jpg"):
        pi.open_images(celeba)


def test_more_attributes_than_labels_can_name(celeba, refused):
    with refused("labels", "11 attributes are too many", "at most 10"):
        pi.open_images(celeba, labels="attr:" + ",".join(f"A{i}" for i in range(11)))
    many = pi.open_images(celeba, labels="attr:" + ",".join(["Male", "Smiling"] * 5))
    assert len(many.label_names) == 1024


def test_other_sources_have_no_splits_and_no_attributes(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(InputError, match="has no splits"):
        pi.open_images(tmp_path / "a.npy", split="train")
    with pytest.raises(InputError, match="is not a folder of CelebA"):
        pi.open_images(tmp_path / "a.npy", labels="attr:Smiling")
