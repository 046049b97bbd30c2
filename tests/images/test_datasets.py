"""Data set objects of torchvision and Hugging Face, and objects with their interface."""

import errno
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from patchindex.errors import PatchIndexWarning
from patchindex.images import open_images


def pictures(images):
    return [Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image) for image in images]


class Items:
    """A data set of the given items; an item that is an exception is raised."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        if isinstance(self.items[i], Exception):
            raise self.items[i]
        return self.items[i]


class OfTorch(Items):
    """A data set like torchvision's: labels are stored in `targets`, and a function may change them."""

    classes = tuple("abcdefghij")

    def __init__(self, images, labels, target_transform=None):
        super().__init__(*zip(pictures(images), labels.tolist(), strict=True))
        self.targets, self.target_transform = labels, target_transform

    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return image, self.target_transform(label) if self.target_transform else label


class HuggingFace:
    """The interface of `datasets.Dataset`."""

    def __init__(self, images, labels):
        kinds = {name: type(name, (), {})() for name in ("Image", "ClassLabel", "Value")}
        kinds["ClassLabel"].names = ["a", "b"]
        self.features = {"img": kinds["Image"], "label": kinds["ClassLabel"], "id": kinds["Value"]}
        self.column_names = list(self.features)
        self.columns = {"img": pictures(images), "label": labels.tolist(), "id": list(range(len(images)))}

    def __len__(self):
        return len(self.columns["id"])

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        return {name: values[key] for name, values in self.columns.items()}


def tensors(images, labels):
    """Return a data set with `ToTensor`, and labels in the items only."""
    x = [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in images]
    return Items(*zip(x, labels.tolist(), strict=True))


@pytest.mark.parametrize(
    ("make", "names"),
    [(OfTorch, OfTorch.classes), (tensors, None), (HuggingFace, ("a", "b"))],
    ids=["pictures", "tensors", "hugging face"],
)
def test_images_and_labels_are_those_of_the_items(real_images, make, names):
    images, labels = real_images(20, (14, 12), classes=(0, 1))
    source = open_images(make(images, labels))
    np.testing.assert_array_equal(source[:], images)
    np.testing.assert_array_equal(source.labels, labels)
    assert source.label_names == names
    small = open_images(make(images, labels), labels=[0] * 20, resize=7)
    assert small.shape == (20, 7, 7, 1)
    assert small.labels.tolist() == [0] * 20


def test_the_real_library_is_read(real_images):
    datasets = pytest.importorskip("datasets")
    images, labels = real_images(10, 14)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"image": pictures(images), "label": labels.tolist()}
    source = open_images(datasets.Dataset.from_dict(columns, features=features))
    np.testing.assert_array_equal(source[:], images)
    np.testing.assert_array_equal(source.labels, labels)


class Relabelled(OfTorch):
    """A data set whose items have other labels than `targets`, without saying so."""

    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return image, label + 5


def test_changed_labels_are_those_of_the_items_and_have_no_names(real_images):
    images, labels = real_images(20, 14)
    for dataset, expected in (
        (OfTorch(images, labels, lambda label: label % 2), labels % 2),
        (Relabelled(images, labels), labels + 5),
    ):
        source = open_images(dataset)
        np.testing.assert_array_equal(source.labels, expected)
        assert source.label_names is None


@pytest.mark.parametrize("attribute", [3, np.array(3), len])
def test_an_attribute_that_is_no_list_of_labels_leaves_those_of_the_items(real_images, attribute):
    images, labels = real_images(20, 14)
    dataset = tensors(images, labels)
    dataset.labels = attribute
    np.testing.assert_array_equal(open_images(dataset).labels, labels)


def test_too_few_label_names_are_left_out(real_images):
    few = OfTorch(*real_images(20, 14))
    few.classes = ("a", "b")
    assert open_images(few).label_names is None


def test_one_colour_item_makes_all_rgb(real_images):
    gray, rgb = real_images(20, 14)[0], real_images(20, 14, channels=3)[0]
    items = pictures(gray)
    items[13] = Image.fromarray(rgb[13])
    expected = np.repeat(gray, 3, axis=3)
    expected[13] = rgb[13]
    np.testing.assert_array_equal(open_images(Items(*items))[:], expected)
    assert open_images(Items(*items), grayscale=True).shape == (20, 14, 14, 1)
    np.testing.assert_array_equal(open_images(Items(*items[:13]))[:], gray[:13])
    # Items after the first with colours are not read.
    assert open_images(Items(Image.fromarray(rgb[0]), *pictures(gray[1:]), KeyError())).shape == (
        21,
        14,
        14,
        3,
    )


def test_items_that_change_later_are_refused(real_images, refused):
    gray, rgb = pictures(real_images(5, 14)[0]), pictures(real_images(5, 14, channels=3)[0])
    dataset = Items(*gray)
    source = open_images(dataset)
    dataset.items = (*gray[:3], *rgb[:2])
    assert len(source[:3]) == 3
    with refused("Items, item 3", "has colours", "grayscale=True"):
        source[:]
    source = open_images(Items(*rgb, OSError("truncated")))
    assert len(source[:5]) == 5
    with refused("Items, item 5", "truncated"):
        source[:]


def test_items_of_several_sizes_are_refused(real_images, refused):
    large, small = pictures(real_images(2, 14, channels=3)[0]), pictures(real_images(2, 12)[0])
    with refused("Items, item 2", "12×12 pixels, but the first image has 14×14"):
        open_images(Items(*large, *small))[:]
    with refused("Items, item 2", "a smaller crop"):
        open_images(Items(*large, *small), crop=13)[:]
    assert len(open_images(Items(*large, *small), resize=9)[:]) == 4


def test_other_objects_are_refused(real_images, refused):
    with refused("Items", "holds no images"):
        open_images(Items())
    with refused("Items", "item 0 is not an image"):
        open_images(Items((real_images(1, 14)[0][0] / 300, 0)))
    with refused("array"):
        open_images(object())


def test_items_of_more_than_8_bits_are_refused(real_images, refused):
    gray = real_images(3, 14)[0]
    deep = Image.fromarray(gray[0, ..., 0].astype(np.uint16) * 257)
    with refused("Items, item 2", "more than 8 bits"):
        open_images(Items(*pictures(gray[:2]), deep))
    assert open_images(Items(*pictures(gray[:2]), deep), skip_bad=True).skipped == ("item 2",)


def test_bad_items_are_skipped_when_asked(real_images, refused):
    images, labels = real_images(6, 14)
    items = list(zip(pictures(images), labels.tolist(), strict=True))
    items[0] = items[4] = OSError("broken data stream when reading image file")
    with refused("Items, item 0", "(broken data stream", "skip_bad=True"):
        open_images(Items(*items))
    source = open_images(Items(*items), skip_bad=True)
    good = [1, 2, 3, 5]
    assert source.skipped == ("item 0", "item 4")
    np.testing.assert_array_equal(source[:], images[good])
    np.testing.assert_array_equal(source.labels, labels[good])
    assert open_images(Items(*items), skip_bad=True, labels=np.arange(6)).labels.tolist() == good
    with refused("none of 2 images can be read"):
        open_images(Items(items[0], items[4]), skip_bad=True)
    for error, words in (
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.png"), "not there any more"),
    ):
        items[2] = error
        with refused("Items, item 2", words):
            open_images(Items(*items), skip_bad=True)


class OfOneFile:
    """A data set like those of HDF5 or LMDB: one file handle with one position."""

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


def test_items_are_read_by_one_thread_at_a_time(real_images, tmp_path):
    images, labels = real_images(400, 28)
    dataset = OfOneFile(tmp_path / "images", images, labels)
    source = open_images(dataset)
    np.testing.assert_array_equal(source.labels, labels)
    for _ in range(3):
        np.testing.assert_array_equal(source[:], images)
    ids = [np.random.default_rng(i).permutation(400)[:50] for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for some, found in zip(ids, pool.map(source.read, ids), strict=True):
            np.testing.assert_array_equal(found, images[some])
    dataset.file.close()


def test_labels_that_are_no_numbers_are_left_out_with_a_warning(real_images):
    images, labels = real_images(4, 14)
    boxes = [{"boxes": [i]} for i in range(4)]
    ragged = [[np.zeros(2), np.zeros(i)] for i in range(4)]
    for own in (["a", "b", "a", "c"], np.eye(4), boxes, ragged):
        items = Items(*zip(pictures(images), own, strict=True))
        with pytest.warns(PatchIndexWarning, match=r"Items: labels that are no numbers are left out; number"):
            assert open_images(items).labels is None
        for given, expected in (("none", None), (labels, labels.tolist())):
            found = open_images(items, labels=given).labels
            assert expected == (None if found is None else found.tolist())
    source = open_images(OfTorch(images, labels), labels="none")
    assert source.labels is None
    assert source.label_names is None
