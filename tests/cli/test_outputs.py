"""Outputs of commands: never inside a store, a source or an unfinished build, nor the folder of a run itself,
and never over an input.
"""

import os
import shutil
import stat

import numpy as np
import pytest
from commands import refused, run
from patchindex_cli.app import main
from PIL import Image
from stores import interrupted, tree

import patchindex as pi


def commands(source, store, network, samples):
    """Return the arguments of each command with an output, by its name."""
    return {
        "build": [source, "--scales", 3],
        "sample": [store, "-n", 1],
        "study": [store],
        "train": [source, "--steps", 1, "--channels", 8],
        "calibrate": [source],
        "compare": [source, "--network", network],
        "compare-table": [samples],
        "explain": [samples],
        "originality": [samples / "samples.npz", store],
    }


NAMES = [
    "build",
    "calibrate",
    "compare",
    "compare-table",
    "explain",
    "originality",
    "sample",
    "study",
    "train",
]


def test_all_commands_with_an_output_are_tested():
    assert sorted(name for name, c in main.commands.items() if any("-o" in p.opts for p in c.params)) == NAMES


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    np.savez(folder / "samples.npz", images=np.zeros((2, 1, 28, 28), np.float32))
    return folder


@pytest.fixture
def network(tmp_path):
    folder = tmp_path / "network"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_no_command_writes_into_a_store_or_an_unfinished_build(
    name, source, store, network, samples, fashion, tmp_path
):
    args = commands(source, store, network, samples)[name]
    interrupted(pi.build_index, fashion[0][:40], tmp_path / "s.zarr", scales=[3], at="k = 3")
    unfinished, link = tmp_path / "s.zarr.building", tmp_path / "link"
    link.symlink_to(store)
    before = tree(store), tree(unfinished)
    places = [store / "images" / "new", store / "new", link / "a" / "b", unfinished / "new"]
    if name != "build":  # `build` refuses a store that exists, or replaces it with --overwrite
        places += [store, unfinished]
    for place in places:
        said = refused(name, *args, "-o", place)
        assert "lies in the " in said or "is a name that builds use" in said
        assert "give another folder for the output" in said
    assert (tree(store), tree(unfinished)) == before
    assert "is a name that builds use" in refused(name, *args, "-o", tmp_path / "t.zarr.building")


@pytest.mark.parametrize("name", sorted({*NAMES} - {"train"}))
def test_no_command_but_train_writes_into_a_run(name, source, store, network, samples):
    args = commands(source, store, network, samples)[name]
    refused(name, *args, "-o", network)
    assert [path.name for path in network.iterdir()] == ["run.json"]


@pytest.mark.parametrize("name", ["build", "calibrate", "compare", "train"])
def test_no_command_writes_into_its_source(name, store, network, samples, tmp_path):
    photos = tmp_path / "photos"
    (photos / "cats").mkdir(parents=True)
    Image.new("L", (8, 8)).save(photos / "cats" / "a.png")
    args = commands(photos, store, network, samples)[name]
    before = tree(tmp_path)
    for place in (photos / "new", photos / "cats" / "deeper" / "new"):
        assert f"lies in the input {photos}" in refused(name, *args, "-o", place)
    assert f"would be written over the input {photos}" in refused(name, *args, "-o", photos)
    assert tree(tmp_path) == before


def test_sample_does_not_replace_the_noise_that_it_starts_from(store, tmp_path):
    options = ["-o", tmp_path / "out", "-n", 1, "--steps", 2]
    run("sample", store, *options)
    noise = tmp_path / "out" / "samples.npz"
    assert f"over the input {noise}" in refused("sample", store, *options[:2], "--x-t", noise, "--overwrite")


def test_folders_that_cannot_be_made_are_refused_before_the_work(store, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
    places = [tmp_path / ("a" * 300), "/proc/new/folder", closed / "new"]
    (tmp_path / "file").write_text("")
    for place in (*places, tmp_path / "file", tmp_path / "file" / "new"):
        if place != closed / "new" or not os.access(closed, os.W_OK):
            said = refused("sample", store, "-n", 1, "-o", place)
            assert "is not a folder that you can write to" in said


def test_a_refused_command_leaves_no_folder(tmp_path):
    refused("sample", tmp_path / "none.zarr", "-o", tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_an_output_beside_its_inputs_is_written(store, samples, tmp_path):
    own = shutil.copytree(store, tmp_path / "s.zarr")
    run("sample", own, "-n", 1, "--steps", 2, "-o", tmp_path)
    assert (tmp_path / "grid.png").exists()
    run("originality", tmp_path / "samples.npz", own, "-o", tmp_path, "--times", "", "--baseline", 2)
