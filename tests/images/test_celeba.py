"""CelebA in the layouts in which people have it."""

import zipfile

import numpy as np
import pytest
from PIL import Image

import patchindex as pi
from patchindex.images import open_images

NAMES = [f"{i:06d}.jpg" for i in range(1, 13)]
SPLIT = [0] * 8 + [1] * 2 + [2] * 2
SMILING = [i % 3 == 0 for i in range(12)]
MALE = [i % 2 == 0 for i in range(12)]


@pytest.fixture(scope="module")
def faces(real_images):
    """Twelve real images in the size of aligned faces."""
    return [Image.fromarray(image).resize((178, 218)) for image in real_images(12, 28, channels=3)[0]]


def save_faces(folder, faces):
    folder.mkdir(parents=True, exist_ok=True)
    for name, face in zip(NAMES, faces, strict=True):
        face.save(folder / name, quality=95)


def zip_faces(path, faces):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, face in zip(NAMES, faces, strict=True):
            with archive.open(f"img_align_celeba/{name}", "w") as file:
                face.save(file, "JPEG", quality=95)


def write_lists(root, places, suffix):
    join = ",".join if suffix == ".csv" else "  ".join
    parts = [join([name, str(part)]) for name, part in zip(NAMES, SPLIT, strict=True)]
    signs = [
        join([name, *("1" if bit else "-1" for bit in bits)])
        for name, *bits in zip(NAMES, SMILING, MALE, strict=True)
    ]
    if suffix == ".csv":
        parts, signs = ["image_id,partition", *parts], ["image_id,Smiling,Male", *signs]
    else:
        signs = ["12", "Smiling Male ", *signs]
    for place, name, lines in zip(
        places, ("list_eval_partition", "list_attr_celeba"), (parts, signs), strict=True
    ):
        (root / place).mkdir(parents=True, exist_ok=True)
        (root / place / f"{name}{suffix}").write_text("\n".join(lines) + "\n")


@pytest.fixture(params=["torchvision", "authors", "kaggle"])
def layout(request):
    return request.param


@pytest.fixture
def celeba(layout, faces, tmp_path):
    root = tmp_path / "celeba"
    if layout == "authors":
        zip_faces(root / "Img" / "img_align_celeba.zip", faces)
        write_lists(root, ("Eval", "Anno"), ".txt")
    elif layout == "torchvision":
        save_faces(root / "img_align_celeba", faces)
        write_lists(root, ("", ""), ".txt")
    else:
        save_faces(root / "img_align_celeba" / "img_align_celeba", faces)
        write_lists(root, ("", ""), ".csv")
    return root


@pytest.fixture
def folder(celeba, layout, faces):
    """The folder of the faces, also in the layout in which they are in an archive."""
    inner = "img_align_celeba/img_align_celeba" if layout == "kaggle" else "img_align_celeba"
    save_faces(celeba / inner, faces)
    return celeba / inner


def test_the_training_split_is_the_default(celeba):
    source = open_images(celeba, crop=148, resize=32)
    assert source.shape == (8, 32, 32, 3)
    assert source.labels is None
    for split, n in (("train", 8), ("valid", 2), ("test", 2), ("all", 12)):
        assert len(open_images(celeba, split=split)) == n
    everything = open_images(celeba, split="all", crop=148, resize=32)
    valid = open_images(celeba, split="valid", crop=148, resize=32)
    np.testing.assert_array_equal(everything[8:10], valid[:])


def test_faces_are_cropped_and_resized_by_pillow(celeba, faces, tmp_path):
    faces[3].save(tmp_path / "face.jpg", quality=95)
    with Image.open(tmp_path / "face.jpg") as image:
        plain = image.crop((15, 35, 163, 183)).resize((32, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(open_images(celeba, crop=148, resize=32)[3], np.asarray(plain))


def test_attributes_are_labels(celeba, refused):
    source = open_images(celeba, labels="attr:Smiling", split="all")
    assert source.labels.tolist() == [int(bit) for bit in SMILING]
    assert source.label_names == ("not Smiling", "Smiling")
    both = open_images(celeba, labels="attr:Male,Smiling", split="test")
    assert both.labels.tolist() == [int(m) + 2 * int(s) for m, s in zip(MALE, SMILING, strict=True)][10:]
    names = ("not Male, not Smiling", "Male, not Smiling", "not Male, Smiling", "Male, Smiling")
    assert both.label_names == names
    many = open_images(celeba, labels="attr:" + ",".join(["Male", "Smiling"] * 5))
    assert len(many.label_names) == 1024
    with refused("labels", "11 attributes are too many", "at most 10"):
        open_images(celeba, labels="attr:" + ",".join(f"A{i}" for i in range(11)))


def test_a_store_keeps_the_names_of_attributes(celeba, tmp_path):
    source = open_images(celeba, labels="attr:Smiling", crop=148, resize=16)
    index = pi.build_index(source, tmp_path / "s.zarr", scales=[3])
    assert index.attributes["labels"] == [0, 1]
    assert index.attributes["label_names"] == ["not Smiling", "Smiling"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "tests"}, "split: there is no 'tests'; use train, valid, test, all"),
        ({"labels": "attr:Happy"}, "has no attribute Happy; use some of Smiling, Male"),
        ({"labels": "folders"}, "is not a folder of image files"),
    ],
)
def test_options_that_celeba_does_not_have_are_refused(celeba, options, words, refused):
    with refused(words):
        open_images(celeba, **options)


def test_damaged_and_missing_lists_are_refused(celeba, layout, refused):
    partition = next(celeba.rglob("list_eval_partition.*"))
    whole = partition.read_text()
    for text, words in (
        ("\n".join(whole.splitlines()[:-1]), ("does not list 1 of the images", "000012.jpg first")),
        (whole.replace("000003.jpg", "000003.jpg 7"), ("has a line of 3 columns, expected 2",)),
        ("", ("is empty",)),
    ):
        partition.write_text(text)
        with refused(partition, *words):
            open_images(celeba)
    partition.unlink()
    assert len(open_images(celeba)) == 12
    with refused(celeba, "has no list_eval_partition.txt"):
        open_images(celeba, split="test")
    next(celeba.rglob("list_attr_celeba.*")).unlink()
    if layout != "authors":  # a folder of images, as any other
        assert len(open_images(celeba)) == 12
    with refused(celeba, "is not a folder of CelebA"):
        open_images(celeba, labels="attr:Smiling")


def test_a_folder_of_faces_is_preferred_to_an_archive(celeba, folder, faces):
    (celeba / "img_align_celeba.zip").write_bytes(b"PK a download that was interrupted")
    source = open_images(celeba, split="all", crop=148, resize=16)
    assert source.names == tuple(NAMES)
    images = source[:]
    for path in folder.iterdir():
        path.unlink()
    zip_faces(celeba / "img_align_celeba.zip", faces)
    again = open_images(celeba, split="all", crop=148, resize=16)
    assert again.names == tuple(f"img_align_celeba/{name}" for name in NAMES)
    np.testing.assert_array_equal(again[:], images)


def test_missing_faces_are_refused_or_skipped(celeba, folder, refused):
    """Faces are missing where an archive was unpacked in part."""
    whole = open_images(celeba, crop=148, resize=16)
    for name in ("000002.jpg", "000006.jpg", "000012.jpg"):
        (folder / name).unlink()
    with refused(folder, "2 of the 8 listed faces are missing, 000002.jpg first", "skip_bad=True"):
        open_images(celeba)
    with refused(folder, "3 of the 12 listed faces"):
        open_images(celeba, split="all")
    assert len(open_images(celeba, split="valid")) == 2
    (folder / "000004.jpg").write_bytes(b"no image")
    left = [0, 2, 4, 6, 7]
    source = open_images(celeba, skip_bad=True, labels="attr:Smiling", crop=148, resize=16)
    assert source.skipped == ("000002.jpg", "000006.jpg", "000004.jpg")
    assert source.names == tuple(NAMES[i] for i in left)
    assert source.labels.tolist() == [int(SMILING[i]) for i in left]
    np.testing.assert_array_equal(source[:], whole.read(left))
    assert open_images(celeba, skip_bad=True, labels=np.arange(8)).labels.tolist() == left
    next(celeba.rglob("list_eval_partition.*")).unlink()
    with refused(folder, "3 of the 12 listed faces"):
        open_images(celeba)


def test_a_face_that_is_there_twice_is_refused(celeba, folder, faces, refused):
    (folder / "copy").mkdir()
    faces[0].save(folder / "copy" / "000001.jpg")
    with refused(folder, "has a face twice, 000001.jpg and copy/000001.jpg"):
        open_images(celeba)


@pytest.mark.parametrize(
    ("yes", "no"), [("1", "-1"), ("1", "0"), ("True", "False"), ("1.0", "-1.0"), ("yes", "No")]
)
def test_attributes_are_read_as_people_spell_them(yes, no, tmp_path, faces, refused):
    save_faces(tmp_path / "img_align_celeba", faces)
    lines = ["image_id,Smiling", *(f"{n},{yes if s else no}" for n, s in zip(NAMES, SMILING, strict=True))]
    path = tmp_path / "list_attr_celeba.csv"
    path.write_text("\n".join(lines))
    assert open_images(tmp_path, labels="attr:Smiling").labels.tolist() == [int(bit) for bit in SMILING]
    for other in ("2", "si", "nan", "1_0"):
        path.write_text("\n".join([*lines[:5], f"{NAMES[4]},{other}", *lines[6:]]))
        with refused(path, f"an attribute of {NAMES[4]} is {other!r}", "write 1 or -1"):
            open_images(tmp_path, labels="attr:Smiling")


def test_an_unknown_split_is_refused(tmp_path, faces, refused):
    save_faces(tmp_path / "img_align_celeba", faces)
    path = tmp_path / "list_eval_partition.txt"
    for part, words in (("0.0", None), ("train", "is 'train'"), ("3", "is '3'")):
        path.write_text("".join(f"{name} {part}\n" for name in NAMES))
        if words is None:
            assert len(open_images(tmp_path)) == 12
        else:
            with refused(path, f"the split of {NAMES[0]} {words}", "write 0, 1 or 2"):
                open_images(tmp_path)
