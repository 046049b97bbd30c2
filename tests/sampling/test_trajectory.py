"""Trajectories: what they keep, and their files."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import zarr

import patchindex as pi
from patchindex.errors import InputError, OutputExistsError, SourceNotFoundError
from patchindex.sampling import Trajectory, TrajectoryFile

ARRAYS = ("t", "k", "x", "mean", "stderr", "ess", "captured_mass")


@pytest.fixture(scope="module")
def machine(real_images):
    return pi.ScoreMachine(real_images(12, 10)[0], locality=[3, 3, 5, 7])


@pytest.fixture(scope="module")
def drawn(machine):
    return pi.sample(machine, n=3, steps=5, batch_size=2, trajectory=True)


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_a_trajectory_has_the_first_evaluation_of_each_step(machine, sampler):
    r = pi.sample(machine, n=3, steps=5, batch_size=2, trajectory=True, sampler=sampler)
    path = r.trajectory
    assert len(path) == 4
    np.testing.assert_array_equal(path.t, [0.8, 0.6, 0.4, 0.2])
    np.testing.assert_array_equal(path.k, [7, 5, 5, 3])
    assert torch.equal(torch.from_numpy(path.x[0]), r.x_T)
    for step, t in enumerate(path.t):
        estimate = machine.posterior_mean(torch.from_numpy(path.x[step]), float(t))
        for name in ("mean", "ess", "captured_mass", "stderr"):
            np.testing.assert_allclose(
                getattr(path, name)[step], getattr(estimate, name), rtol=1e-3, atol=1e-4
            )


def test_a_step_has_the_record_that_a_posterior_mean_takes(machine, drawn):
    path, last = drawn.trajectory, drawn.trajectory.step(-1)
    assert (last.t, last.k) == (0.2, 3)
    for name in ARRAYS[2:]:
        np.testing.assert_array_equal(getattr(last, name), getattr(path, name)[3])
    estimate = machine.posterior_mean(last.x, last.t, k=last.k)
    torch.testing.assert_close(estimate.mean, last.mean, rtol=1e-3, atol=1e-4)
    assert path.step(0).t == path.step(-4).t == 0.8
    wiener = pi.sample(pi.denoiser("wiener", np.zeros((3, 4, 4), np.uint8)), n=1, steps=2, trajectory=True)
    assert wiener.trajectory.step(0).k is None


@pytest.mark.parametrize("i", [4, -5, 1.0, True, "0"])
def test_a_step_that_is_not_there_is_refused(drawn, i):
    with pytest.raises(InputError, match=r"there is no step .*; use 0 to 3"):
        drawn.trajectory.step(i)


def test_without_the_option_there_is_no_trajectory(machine):
    assert pi.sample(machine, n=1, steps=3).trajectory is None


def test_a_file_that_is_written_in_parts_has_the_same_trajectory(drawn, tmp_path):
    file, path = TrajectoryFile(tmp_path / "trajectory.zarr"), drawn.trajectory
    for first, rows in ((2, [2]), (0, [0, 1])):  # in any order
        part = Trajectory(path.t, path.k, *[getattr(path, name)[:, rows] for name in ARRAYS[2:]])
        file.write(part, first, 3)
    whole, one = file.read(), file.read([1])
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(whole, name), getattr(path, name))
    np.testing.assert_array_equal(one.mean, path.mean[:, [1]])
    with pytest.raises(InputError, match="has no image 3; it has 3; use 0 to 2"):
        file.read([3])


@pytest.mark.parametrize(
    ("changed", "n", "array"),
    [({"t": np.array([0.8, 0.4])}, 3, "t"), ({"k": np.array([9, 9])}, 3, "k"), ({}, 4, "x")],
)
def test_a_part_of_another_trajectory_is_refused(drawn, tmp_path, changed, n, array):
    file, path = TrajectoryFile(tmp_path / "trajectory.zarr"), drawn.trajectory
    two = Trajectory(path.t[:2], path.k[:2], *[getattr(path, name)[:2] for name in ARRAYS[2:]])
    file.write(two, 0, 3)
    other = dataclasses.replace(two, x=two.x + 1, **changed)
    with pytest.raises(InputError, match=f"has another trajectory: its array {array} differs; write to"):
        file.write(other, 0, n)
    with pytest.raises(InputError, match=r"has another trajectory: its array t differs"):
        file.write(path, 0, 3)  # more steps
    np.testing.assert_array_equal(file.read().x, two.x)


@pytest.mark.parametrize("first", [-1, 1])
def test_a_part_outside_of_the_images_is_refused(drawn, tmp_path, first):
    file = TrajectoryFile(tmp_path / "trajectory.zarr")
    with pytest.raises(InputError, match=f"first: 3 images from image {first} on do not fit into 3; give"):
        file.write(drawn.trajectory, first, 3)
    assert not file.path.exists()


def test_a_file_in_the_way_is_refused(drawn, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputExistsError, match="file: is a file; write to another path"):
        TrajectoryFile(tmp_path / "file").write(drawn.trajectory, 0, 3)
    assert (tmp_path / "file").read_text() == "mine"


def _drop(path):
    (path / "ess" / "zarr.json").unlink()


def _other_shape(path):
    metadata = path / "mean" / "zarr.json"
    found = json.loads(metadata.read_text())
    found["shape"][1] = 2
    metadata.write_text(json.dumps(found))


def _pickle(path):
    metadata = path / "x" / "zarr.json"
    found = json.loads(metadata.read_text())
    found["codecs"] = [{"name": "numcodecs.pickle", "configuration": {}}]
    metadata.write_text(json.dumps(found))


def _other_type(path):
    zarr.open_group(path, mode="a").create_array("k", data=np.full(4, np.nan), overwrite=True)


def _damaged_chunk(path):
    chunk = next(file for file in sorted((path / "mean" / "c").rglob("*")) if file.is_file())
    chunk.write_bytes(bytes(len(chunk.read_bytes())))


def _no_chunk_shape(path):
    metadata = path / "x" / "zarr.json"
    found = json.loads(metadata.read_text())
    found["chunk_grid"]["configuration"]["chunk_shape"][0] = 0
    metadata.write_text(json.dumps(found))


@pytest.mark.parametrize(
    "damage", [_drop, _other_shape, _pickle, _other_type, _damaged_chunk, _no_chunk_shape]
)
def test_a_damaged_file_is_refused_in_one_line(drawn, tmp_path, damage):
    file = TrajectoryFile(tmp_path / "trajectory.zarr")
    file.write(drawn.trajectory, 0, 3)
    damage(file.path)
    with pytest.raises(InputError, match="draw again with --save-trajectory"):
        file.read()


def test_no_file(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no such trajectory"):
        TrajectoryFile(tmp_path / "none.zarr").read()


def test_an_image_that_is_not_drawn_yet_is_refused(drawn, tmp_path):
    file = TrajectoryFile(tmp_path / "t.zarr")
    file.write(drawn.trajectory, 0, 5)
    assert file.read([2]).x.shape[1] == 1
    with pytest.raises(InputError, match=r"t\.zarr: image 3 is not drawn yet; continue with sample --resume"):
        file.read([2, 3])


def test_a_file_of_another_format_is_refused(drawn, tmp_path):
    file = TrajectoryFile(tmp_path / "t.zarr")
    file.write(drawn.trajectory, 0, 3)
    zarr.open_group(file.path).attrs["format"] = "patchindex trajectory 2"
    with pytest.raises(InputError, match="has the format 'patchindex trajectory 2', not"):
        file.read()
    with pytest.raises(OutputExistsError, match="is no trajectory; write to another path"):
        file.write(drawn.trajectory, 0, 3)


def test_nothing_in_a_folder_is_replaced(drawn, tmp_path):
    group = zarr.open_group(tmp_path / "mine.zarr", mode="w")
    group["x"] = np.arange(3)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x").write_text("mine")
    for name in ("mine.zarr", "notes"):
        with pytest.raises(OutputExistsError, match="is no trajectory; write to another path"):
            TrajectoryFile(tmp_path / name).write(drawn.trajectory, 0, 3)
    assert group["x"][:].tolist() == [0, 1, 2]
    assert (tmp_path / "notes" / "x").read_text() == "mine"


def test_a_group_whose_creation_was_killed_is_made_again(drawn, tmp_path):
    whole, cut, begun = (TrajectoryFile(tmp_path / name) for name in ("whole.zarr", "cut.zarr", "begun.zarr"))
    whole.write(drawn.trajectory, 0, 3)
    cut.write(drawn.trajectory, 0, 3)
    group = zarr.open_group(cut.path)
    group.attrs["complete"] = False
    group["t"][:] = 0  # killed between the metadata and the values of an array
    del group["x"]
    begun.path.mkdir()
    (begun.path / "zarr.json.0f3a.partial").write_text("{")
    for file in (cut, begun):
        file.write(drawn.trajectory, 0, 3)
        np.testing.assert_array_equal(file.read().x, whole.read().x)


@pytest.mark.parametrize("name", ["mean", "stderr"])
def test_an_image_counts_as_drawn_only_when_all_its_arrays_are_written(drawn, tmp_path, monkeypatch, name):
    file, write = TrajectoryFile(tmp_path / "t.zarr"), zarr.Array.__setitem__

    def killed(array, *value):
        if array.basename == name:
            raise KeyboardInterrupt
        write(array, *value)

    with monkeypatch.context() as patched:
        patched.setattr(zarr.Array, "__setitem__", killed)
        with pytest.raises(KeyboardInterrupt):
            file.write(drawn.trajectory, 0, 3)
    with pytest.raises(InputError, match="image 0 is not drawn yet"):
        file.read()
