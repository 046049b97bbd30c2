"""What is done to a store later: append, tune; and what info tells of it."""

import json
import shutil

import numpy as np
import pytest
from commands import fashion_images, refused, run, small_store
from PIL import Image


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return small_store(tmp_path_factory)


@pytest.fixture(scope="module")
def fashion():
    return fashion_images()


@pytest.fixture
def copied(store, tmp_path):
    return shutil.copytree(store, tmp_path / "store.zarr")


def test_append_says_what_was_added_and_others_do_not(copied, store, fashion, tmp_path):
    more = tmp_path / "more.npz"
    np.savez(more, images=fashion[0][40:50], labels=fashion[1][40:50])
    done = run("append", copied, more, "--no-tune").stdout
    assert "50 images (10 added), " in done
    assert done.count("patches appended: ") == 3
    assert json.loads(run("append", copied, more, "--no-tune", "--json").stdout)["added"] == 10
    later = run("build", "--add-scales", "9", "-o", copied, "--no-tune").stdout
    assert "60 images, " in later
    assert "added" not in later
    assert "appended" not in later
    told = run("info", copied).stdout
    assert f"appended    10 from {more}, 10 from {more}" in told
    assert told.count("k = 3: 10 images: patches appended: ") == 2


def test_drift_that_cannot_be_compared_has_no_number(tmp_path):
    np.save(tmp_path / "flat.npy", np.full((8, 8, 8), 50, np.uint8))
    run("build", tmp_path / "flat.npy", "-o", tmp_path / "s.zarr", "--locality", "3,3", "--no-tune")
    done = run("append", tmp_path / "s.zarr", tmp_path / "flat.npy", "--no-tune").stdout
    assert "k = 3: patches appended: 0.00% of their codes out of range\n" in done


def test_tune_measures_what_is_missing(copied):
    (copied / "scales" / "k005" / "operating_curve.json").unlink()
    assert f"no operating curve for k = 5, by which options are chosen: patchindex tune {copied}" in (
        run("info", copied).stdout
    )
    one = ("--threads", 1)
    assert json.loads(run("tune", copied, "--json", *one).stdout)["measured"] == [5]
    assert "no operating curve" not in run("info", copied).stdout
    assert "nothing to do: all have one" in run("tune", copied).stdout
    assert "measured at k = 3, 5, 7" in run("tune", copied, "--overwrite", *one).stdout
    assert "no such store" in refused("tune", copied / "none")


def test_tune_has_nothing_to_do_without_an_index(store, tmp_path):
    run("build", store.with_suffix(".npz"), "-o", tmp_path / "s.zarr", "--machine", "IS")
    assert "it has no index" in run("tune", tmp_path / "s.zarr").stdout


@pytest.fixture(scope="module")
def photos(fashion, tmp_path_factory):
    """Return a folder of two folders of images, some of which are damaged."""
    folder = tmp_path_factory.mktemp("photos")
    for label in ("bag, small", "shoe"):
        (folder / label).mkdir(parents=True)
        for i, image in enumerate(fashion[0][:2]):
            Image.fromarray(image).save(folder / label / f"{i}.png")
    for i in range(12):
        (folder / "shoe" / f"bad{i:02d}.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def named(photos, tmp_path_factory):
    """Return a store of them, whose labels have names, and what was printed."""
    store = tmp_path_factory.mktemp("named") / "s.zarr"
    build = ("build", photos, "-o", store, "--locality", "3,3", "--no-tune")
    return store, run(*build, "--skip-bad", "--labels", "folders")


def test_info_names_what_was_left_out_and_tells_labels_apart(named):
    store, built = named
    assert "4 images, 2,704 patches at 1 scale, " in built.stdout
    told = run("info", store).stdout
    assert "left out    12 files that cannot be decoded: shoe/bad00.png, " in told
    assert "shoe/bad09.png, ...\n" in told
    assert "labels      0 bag, small; 1 shoe\n" in told


def test_a_label_may_be_given_by_its_name(named, store, tmp_path):
    for label in ("shoe", "1"):
        args = ("-n", 1, "--steps", 2, "-o", tmp_path / label, "--label", label)
        run("sample", named[0], *args)
        assert json.loads((tmp_path / label / "samples.json").read_text())["settings"]["label"] == 1
    run("study", named[0], "--steps", 2, "-o", tmp_path / "study", "--label", "bag, small")
    assert json.loads((tmp_path / "study" / "study.json").read_text())["settings"]["label"] == 0
    out = ("-o", tmp_path / "out", "--label", "hat")
    for command in ("sample", "study"):
        assert "--label: the store has no label called 'hat'; use one of: bag, small; shoe" in refused(
            command, named[0], *out
        )
        assert "called 'hat'; use one of: 0; 1; 2; " in refused(command, store, *out)


def test_photos_of_any_size_in_two_commands(fashion, tmp_path):
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(fashion[0][:4]):
        Image.fromarray(image[: 20 + i]).save(tmp_path / "photos" / f"{i}.png")
    crop = ("--crop", "square", "--resize", 12)
    run("build", tmp_path / "photos", "-o", tmp_path / "s.zarr", *crop, "--locality", "3,3", "--no-tune")
    assert "4 of 12 x 12 x 1" in run("info", tmp_path / "s.zarr").stdout
    said = refused("build", tmp_path / "photos", "-o", tmp_path / "t.zarr", "--crop", "round")
    assert "'--crop': 'round' is neither pixels nor 'square'" in said
