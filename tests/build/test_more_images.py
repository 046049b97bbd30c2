"""Images that are appended to a finished store."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stores import assert_refuses_damaged_images, interrupted, names_in, tree

import patchindex as pi
from patchindex.build import image_options_of
from patchindex.errors import InputError, OutputExistsError

EVERYTHING = {"estimator": "topk", "candidates": 10**6, "probes": 10**4}


@pytest.fixture
def small(labelled, tmp_path):
    return pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3], labels=labelled[1], seed=3)


def test_damaged_images_are_not_copied(small, labelled, tmp_path):
    """The new store would have checksums of the damaged images."""
    assert_refuses_damaged_images(small.path, lambda: pi.append(small.path, labelled[0][:5], labelled[1][:5]))
    assert names_in(tmp_path) == ["s.zarr"]


@pytest.mark.parametrize("machine", ["ELS", "bbELS"])
@pytest.mark.parametrize("with_labels", [True, False])
def test_a_store_with_appended_images_equals_one_build(
    labelled, tmp_path, small_shards, held_out, machine, with_labels
):
    images, labels = labelled
    some, rest, every = (
        {"labels": labels[rows]} if with_labels else {} for rows in (slice(25), slice(25, None), slice(None))
    )
    path = tmp_path / "s.zarr"
    pi.build_index(images[:25], path, scales=[3, 5], machine=machine, lists=60, **some)
    found = pi.append(path, images[25:], **rest)
    assert names_in(tmp_path) == ["s.zarr"]
    assert pi.verify(path).problems == ()
    assert len(found.training) == 40
    np.testing.assert_array_equal(found.training.read(0, 40), images[found.training.source_ids])
    whole = pi.build_index(images, tmp_path / "w.zarr", scales=[3, 5], machine=machine, **every)
    np.testing.assert_array_equal(found.training.source_ids, whole.training.source_ids)
    if with_labels:
        np.testing.assert_array_equal(found.training.labels, whole.training.labels)
        assert found.attributes["labels"] == [1, 4, 9]
    x = held_out(0.5)
    for k in (3, 5):
        for label in (None, 4) if with_labels else (None,):
            mine, exact = (
                pi.ScoreMachine(store, **way).posterior_mean(x, 0.5, k=k, label=label).mean
                for store, way in ((found, EVERYTHING), (whole, {"estimator": "exact"}))
            )
            torch.testing.assert_close(mine, exact, rtol=0, atol=1e-4)  # logits in float32
        assert (np.diff(np.concatenate([i for _, i, _ in found.scale(k).members(0, 1)])) > 0).all()


def test_each_call_records_its_drift(real_images, tmp_path):
    images, _ = real_images(400, 14)
    path = tmp_path / "s.zarr"
    pi.build_index(images[:300], path, scales=[3])
    noise = np.random.default_rng(0).integers(0, 256, (50, 14, 14, 1), np.uint8)
    pi.append(path, images[300:])
    index = pi.append(path, noise)
    like, unlike = index.scale(3).attributes["drift"]
    assert (like["images"], unlike["images"]) == (100, 50)
    assert 0.8 < like["distance"] < 1.2
    assert like["clipped"] < 0.01
    assert unlike["distance"] > 2
    assert index.training.source_ids.tolist() == list(range(450))
    stored, shown = (found["settings"]["appended"] for found in (index.attributes, index.info()))
    assert [entry["images"] for entry in stored] == [100, 50]
    assert [entry["fingerprint"] for entry in shown] == [entry["digest"] for entry in stored]
    assert pi.verify(path).whole


def test_an_interrupted_append_keeps_the_old_store_and_continues(small, labelled):
    images, labels = labelled
    before = tree(small.path)
    interrupted(pi.append, small.path, images[:7], labels[:7], at="k = 3: merging")
    assert tree(small.path) == before
    with pytest.raises(OutputExistsError, match="unfinished build is there"):
        pi.append(small.path, images[:7], labels[:7])
    with pytest.raises(InputError, match=r"other settings \([^)]*shape"):
        pi.append(small.path, images[:9], labels[:9], resume=True)
    for _ in range(2):  # the second call finds the images appended
        assert len(pi.append(small.path, images[:7], labels[:7], resume=True).training) == 47
    assert pi.verify(small.path).whole
    assert names_in(small.path.parent) == ["s.zarr"]


def test_other_images_are_not_taken_for_the_appended_ones(small, labelled):
    images, labels = labelled[0][:7], labelled[1][:7]
    pi.append(small.path, images, labels)
    others = images.copy()
    others[5] = 255 - others[5]
    assert len(pi.append(small.path, others, labels, resume=True).training) == 54


def test_scales_are_not_added_to_a_store_with_an_unfinished_append(small, labelled):
    interrupted(pi.append, small.path, *labelled, at="images")
    with pytest.raises(OutputExistsError, match="unfinished build is there; continue it"):
        pi.add_scales(small.path, [7])
    assert len(pi.append(small.path, *labelled, resume=True).training) == 80


def test_images_that_do_not_fit_are_refused(small, labelled, real_images):
    images, labels = labelled
    before = tree(small.path)
    for more, words in (
        ((images,), "images have no labels, unlike those before"),
        ((real_images(3, 12)[0], [1, 1, 1]), r"images have shape \(12, 12, 1\)"),
        ((real_images(3, 14, channels=3)[0], [1, 1, 1]), r"\(14, 14, 3\)"),
        ((images, labels[:3]), "3 labels for 40 images"),
    ):
        with pytest.raises(InputError, match=words):
            pi.append(small.path, *more)
    assert tree(small.path) == before


def test_images_of_a_path_are_opened_as_in_the_build(real_images, tmp_path):
    from PIL import Image

    images, _ = real_images(8, 28)
    for i, image in enumerate(images):
        folder = tmp_path / ("old" if i < 6 else "new") / ("bag" if i % 2 else "coat")
        folder.mkdir(parents=True, exist_ok=True)
        wide = np.pad(image[:, :, 0], ((0, 0), (0, i)))
        Image.fromarray(np.stack([wide] * 3, -1)).save(folder / f"{i}.png")
    way = {"crop": "square", "resize": 14, "grayscale": True, "labels": "folders"}
    path = tmp_path / "s.zarr"
    pi.build_index(pi.open_images(tmp_path / "old", **way), path, scales=[3])
    assert image_options_of(path) == way | {"resize": (14, 14)}
    index = pi.append(path, tmp_path / "new")
    assert index.attributes["labels"] == [0, 1]
    expected = pi.open_images(tmp_path / "new", **way)
    np.testing.assert_array_equal(index.training.in_source_order()[6:], expected[:])
    assert image_options_of(pi.append(path, expected).path) == image_options_of(path)
    with pytest.raises(InputError, match=r"images have shape \(28, 28, 3\)"):
        pi.append(path, pi.open_images(tmp_path / "new", crop=28, labels="folders"))


def test_a_record_of_images_that_were_opened_twice_has_no_wrong_transform(real_images):
    images = pi.open_images(real_images(2, 28)[0], crop=20, labels=[1, 2])
    assert images.prepared.options() == {"crop": (20, 20)}
    assert pi.open_images(images, labels="none").prepared.options() == {"crop": (20, 20), "labels": "none"}
    assert pi.open_images(images, resize=8).prepared.options() == {}
    assert images.subset(1).prepared == images.prepared


def test_equal_images_are_counted_and_added(labelled, tmp_path):
    images = labelled[0]
    path = tmp_path / "s.zarr"
    for labels in (None, labelled[1]):
        old, new = slice(0, 10), [3, 20, 21, 20, 20, 3, 22]
        some, rest = ([], []) if labels is None else ([labels[old]], [labels[new]])
        pi.build_index(images[old], path, [3], *some, overwrite=True)
        index = pi.append(path, images[new], *rest)
        assert index.attributes["settings"]["appended"][0]["duplicates"] == {"store": 2, "new": 2}
        assert len(index.training) == 17
        assert len(pi.append(path, images[new], *rest, resume=True).training) == 17


def test_duplicates_are_counted_after_an_interruption(small, labelled):
    interrupted(pi.append, small.path, labelled[0][:5], labelled[1][:5], at="k = 3: merging")
    index = pi.append(small.path, labelled[0][:5], labelled[1][:5], resume=True)
    assert index.attributes["settings"]["appended"][0]["duplicates"] == {"store": 5, "new": 0}


def test_named_labels_are_matched_by_name(real_images, tmp_path):
    from PIL import Image

    images, _ = real_images(12, 14)
    for i, name in enumerate(["bag", "coat", "shirt"] * 4):
        folder = tmp_path / ("old" if i < 8 else "new") / ("hat" if i == 11 else name)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i, :, :, 0]).save(folder / f"{i}.png")
    pi.build_index(pi.open_images(tmp_path / "old", labels="folders"), tmp_path / "s.zarr", scales=[3])
    index = pi.append(tmp_path / "s.zarr", pi.open_images(tmp_path / "new", labels="folders"))
    names = index.attributes["label_names"]
    assert names == ["bag", "coat", "shirt", "hat"]
    for label, name in enumerate(names):
        lo, hi = index.training.range_of(label)
        files = [file for part in ("old", "new") for file in (tmp_path / part).glob(f"{name}/*")]
        stored = {index.training.read(i, i + 1).tobytes() for i in range(lo, hi)}
        assert stored == {images[int(file.stem)].tobytes() for file in files}
    assert pi.verify(index.path).whole
    with pytest.raises(InputError, match="labels have no names, and the labels before have 4"):
        pi.append(index.path, images[:1], [7])
    assert len(pi.append(index.path, images[:1], [3]).training) == 13
    numbers = pi.build_index(images, tmp_path / "n.zarr", scales=[3], labels=[5] * 12)
    with pytest.raises(InputError, match="labels have names, and the labels before have none"):
        pi.append(numbers.path, pi.open_images(tmp_path / "new", labels="folders"))
