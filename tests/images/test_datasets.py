"""Data set objects of torchvision and Hugging Face, and others that look like these."""

from __future__ import annotations

import errno
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import patchindex as pi
from patchindex.errors import InputError


class OfTorch:
    """As torchvision's folders are: items are decoded one by one."""

    classes = tuple("abcdefghij")

    def __init__(self, images, labels):
        self.images, self.targets = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return Image.fromarray(self.images[i][:, :, 0]), int(self.targets[i])


class OfTensors(OfTorch):
    """With `ToTensor`, and labels in the items only."""

    classes = None

    def __init__(self, images, labels):
        self.images, self.own = images, labels

    def __getitem__(self, i):
        import torch

        return torch.from_numpy(self.images[i]).permute(2, 0, 1) / 255, int(self.own[i])


@pytest.mark.parametrize("kind", [OfTorch, OfTensors])
def test_data_sets_of_torch(real_images, kind):
    images, labels = real_images(20, (14, 12))
    source = pi.open_images(kind(images, labels))
    assert source.shape == (20, 14, 12, 1)
    np.testing.assert_array_equal(source[:], images)
    np.testing.assert_array_equal(source.labels, labels)
    assert source.label_names == kind.classes
    assert pi.open_images(kind(images, labels), labels=[0] * 20, resize=7).labels.tolist() == [0] * 20


def hugging_face(images, labels):
    """A stand-in with the interface of `datasets.Dataset` that is used, for where it is not installed."""
    of_kind = {name: type(name, (), {}) for name in ("Image", "ClassLabel", "Value")}
    label = of_kind["ClassLabel"]()
    label.names = ["a", "b"]
    columns = {
        "img": [Image.fromarray(image[:, :, 0]) for image in images],
        "label": labels.tolist(),
        "id": list(range(len(images))),
    }

    class Dataset:
        def __init__(self):
            self.column_names = list(columns)
            self.features = {"img": of_kind["Image"](), "label": label, "id": of_kind["Value"]()}

        def __len__(self):
            return len(images)

        def __getitem__(self, key):
            return (
                columns[key]
                if isinstance(key, str)
                else {name: values[key] for name, values in columns.items()}
            )

    return Dataset()


def test_data_sets_of_hugging_face(real_images):
    images, labels = real_images(20, 14, classes=(0, 1))
    source = pi.open_images(hugging_face(images, labels))
    np.testing.assert_array_equal(source[:], images)
    np.testing.assert_array_equal(source.labels, labels)
    assert source.label_names == ("a", "b")


def test_data_sets_that_cannot_be_used(real_images):
    images, labels = real_images(4, 14)
    for bad, words in (
        (OfTorch(images[:0], labels[:0]), "holds no images"),
        (OfTorch(list(images[:2]) + list(real_images(2, 12)[0]), labels), "item 2 has shape"),
        (types.SimpleNamespace(), None),
    ):
        with pytest.raises((InputError, TypeError), match=words):
            pi.open_images(bad)[:]

    class Halves(OfTensors):
        def __getitem__(self, i):
            return self.images[i] / 300, 0

    with pytest.raises(InputError, match="item 0 is not an image"):
        pi.open_images(Halves(images, labels))


def test_the_real_library_where_it_is_installed(real_images):
    datasets = pytest.importorskip("datasets")
    images, labels = real_images(10, 14)
    pictures = [Image.fromarray(image[:, :, 0]) for image in images]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    source = pi.open_images(
        datasets.Dataset.from_dict({"image": pictures, "label": labels.tolist()}, features=features)
    )
    np.testing.assert_array_equal(source[:], images)
    np.testing.assert_array_equal(source.labels, labels)
    assert "datasets" in sys.modules


class Items:
    """Items as they are given, or raised."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        if isinstance(self.items[i], Exception):
            raise self.items[i]
        return self.items[i]


def pictures(images):
    return [Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image) for image in images]


def test_one_colour_item_makes_all_rgb(real_images):
    gray, rgb = real_images(20, 14)[0], real_images(20, 14, channels=3)[0]
    items = pictures(gray)
    items[13] = Image.fromarray(rgb[13])
    source = pi.open_images(Items(*items))
    expected = np.repeat(gray, 3, axis=3)
    expected[13] = rgb[13]
    np.testing.assert_array_equal(source[:], expected)
    assert pi.open_images(Items(*items), grayscale=True).shape == (20, 14, 14, 1)
    np.testing.assert_array_equal(pi.open_images(Items(*items[:13]))[:], gray[:13])
    # The first with colours is enough to know.
    seen = Items(Image.fromarray(rgb[0]), *pictures(gray[1:]), KeyError("not read"))
    assert pi.open_images(seen).shape == (21, 14, 14, 3)


def test_colours_that_come_later_are_not_lost(real_images, refused):
    items = pictures(real_images(5, 14)[0])
    items_seen = Items(*items)
    source = pi.open_images(items_seen)
    items_seen.items = (*items[:3], *pictures(real_images(2, 14, channels=3)[0]))
    assert len(source[:3]) == 3
    with refused("item 3 has colours", "grayscale=True"):
        source[:]


def test_items_of_more_than_8_bits(real_images, tmp_path, refused):
    deep = real_images(3, 14)[0][..., 0].astype(np.uint16) * 257
    with refused("Items, item 0", "more than 8 bits"):
        pi.open_images(Items(*map(Image.fromarray, deep)))
    gray = pictures(real_images(3, 14)[0])
    with refused("Items, item 2", "more than 8 bits"):
        pi.open_images(Items(*gray[:2], Image.fromarray(deep[0])))
    source = pi.open_images(Items(*gray[:2], Image.fromarray(deep[0])), skip_bad=True)
    assert source.skipped == ("item 2",)


class OfOneFile:
    """As of HDF5 or LMDB: one handle, and a place in it."""

    def __init__(self, path, images, labels):
        path.write_bytes(images.tobytes())
        self.file, self.shape, self.own = path.open("rb"), images.shape, labels

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, i):
        size = int(np.prod(self.shape[1:]))
        self.file.seek(i * size)
        data = b"".join(self.file.read(64) for _ in range(0, size, 64))
        return np.frombuffer(data[:size], np.uint8).reshape(self.shape[1:]), int(self.own[i])


def test_items_of_one_file_are_read_one_at_a_time(real_images, tmp_path):
    images, labels = real_images(400, 28)
    dataset = OfOneFile(tmp_path / "images", images, labels)
    source = pi.open_images(dataset)
    np.testing.assert_array_equal(source.labels, labels)
    for _ in range(3):
        np.testing.assert_array_equal(source[:], images)
    ids = [np.random.default_rng(i).permutation(400)[:50] for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for some, found in zip(ids, pool.map(source.read, ids), strict=True):
            np.testing.assert_array_equal(found, images[some])
    dataset.file.close()


def test_bad_items(real_images, refused):
    images, labels = real_images(6, 14)
    items = list(zip(pictures(images), labels.tolist(), strict=True))
    items[0] = items[4] = OSError("broken data stream when reading image file")
    with refused("Items, item 0", "cannot be read (broken data stream", "skip_bad=True"):
        pi.open_images(Items(*items))
    source = pi.open_images(Items(*items), skip_bad=True)
    good = [1, 2, 3, 5]
    assert source.skipped == ("item 0", "item 4")
    np.testing.assert_array_equal(source[:], images[good])
    np.testing.assert_array_equal(source.labels, labels[good])
    assert pi.open_images(Items(*items), skip_bad=True, labels=np.arange(6)).labels.tolist() == good
    with refused("none of 2 images can be read"):
        pi.open_images(Items(items[0], items[4]), skip_bad=True)
    for error, words in (
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.png"), "not there any more"),
    ):
        items[2] = error
        with refused("Items, item 2", words):
            pi.open_images(Items(*items), skip_bad=True)


def test_items_that_turn_bad_later(real_images, refused):
    items = pictures(real_images(3, 14, channels=3)[0])
    source = pi.open_images(Items(*items, OSError("truncated")))
    assert len(source[:3]) == 3
    with refused("Items, item 3", "truncated"):
        source[:]
    small = pi.open_images(Items(*items, items[0].resize((9, 9))), crop=12)
    with refused("Items, item 3", "a smaller crop"):
        small[:]


class WithTargets(OfTorch):
    """As torchvision: `targets` are as on disk, items as the user's function changes them."""

    def __init__(self, images, labels, target_transform):
        super().__init__(images, labels)
        self.target_transform = target_transform

    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return image, self.target_transform(label) if self.target_transform else label


def test_labels_are_those_of_the_items(real_images):
    images, labels = real_images(20, 14)
    source = pi.open_images(WithTargets(images, labels, None))
    np.testing.assert_array_equal(source.labels, labels)
    assert source.label_names == OfTorch.classes
    odd = pi.open_images(WithTargets(images, labels, lambda label: label % 2))
    np.testing.assert_array_equal(odd.labels, labels % 2)
    assert odd.label_names is None

    class Unsaid(OfTorch):
        """With another label in the items than in `targets`, and no word of it."""

        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return image, label + 5

    unsaid = pi.open_images(Unsaid(images, labels))
    np.testing.assert_array_equal(unsaid.labels, labels + 5)
    assert unsaid.label_names is None


def test_names_that_are_not_enough_are_left_out(real_images):
    images, labels = real_images(20, 14)
    few = OfTorch(images, labels)
    few.classes = ("a", "b")
    assert pi.open_images(few).label_names is None
