"""`patchindex sample`: interrupted runs, trajectories, conditions from files, and rows of labels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from commands import refused, run
from patchindex_cli import main
from PIL import Image
from safetensors.numpy import save_file

from patchindex.sampling import Sampling, TrajectoryFile, draw_noise
from patchindex.study.parts import hold_folder

QUICK = ("--estimator", "exact", "--steps", 4)


class StoppedError(RuntimeError):
    pass


def images_of(folder):
    with np.load(folder / "samples.npz") as samples:
        return samples["images"]


# The command line in its arguments; the process ends itself after the second batch is written.
INTERRUPTED = """
import os, runpy, signal
from patchindex.study.parts import Parts

add, calls = Parts.add, []

def add_twice(self, *arguments, **arrays):
    add(self, *arguments, **arrays)
    calls.append(arguments)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGTERM)

Parts.add = add_twice
runpy.run_module("patchindex", run_name="__main__", alter_sys=True)
"""


def test_an_interrupted_run_keeps_its_batches_and_resumes_with_the_same_bytes(small_store, tmp_path):
    args = [str(small_store), "-n", "40", "--batch-size", "2", "--steps", "6", "--estimator", "exact"]
    args += ["--save-trajectory", "--threads", "1"]
    output = tmp_path / "cut"
    command = [sys.executable, "-c", INTERRUPTED, "sample", *args, "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stderr
    parts = output / "parts" / "samples"
    assert f"{output}: 4 of 40 images are finished; give --resume to continue" in done.stderr
    assert "Error: interrupted" in done.stderr
    assert not (output / "samples.npz").exists()

    assert "continue with --resume" in refused("sample", *args, "-o", output)
    assert "seed (was 0, is 1)" in refused("sample", *args, "-o", output, "--resume", "--seed", "1")
    before = {path: path.stat().st_mtime_ns for path in parts.glob("*.npz")}
    kept = {path: path.read_bytes() for path in before}
    assert len(kept) == 2
    run("sample", *args, "-o", output, "--resume")
    run("sample", *args, "-o", tmp_path / "whole")
    assert images_of(output).tobytes() == images_of(tmp_path / "whole").tobytes()
    for name in ("x", "mean", "ess"):
        cut, whole = (
            getattr(TrajectoryFile(folder / "trajectory.zarr").read(), name)
            for folder in (output, tmp_path / "whole")
        )
        assert cut.tobytes() == whole.tobytes()
    assert not (output / "parts").exists()
    steps = [
        json.loads((folder / "samples.json").read_text())["steps"] for folder in (output, tmp_path / "whole")
    ]
    for cut, whole in zip(*steps, strict=True):
        assert cut.keys() == whole.keys()
        assert cut | {"seconds": 0} == whole | {"seconds": 0}


def test_a_resumed_run_draws_missing_images_only_whatever_their_batches(small_store, tmp_path, monkeypatch):
    def command(folder, size, *more):
        options = ("--label", 3, "--label", 8, "--batch-size", size, *QUICK, "--save-trajectory", *more)
        return ("sample", small_store, "-n", 5, "-o", tmp_path / folder, *options)

    draw, drawn = Sampling.draw, []

    def some(self, lo, hi, progress=None):
        if len(drawn) == 3:  # the first run ends there
            raise StoppedError
        drawn.append((lo, hi))
        return draw(self, lo, hi, progress)

    with monkeypatch.context() as patched:
        patched.setattr(Sampling, "draw", some)
        assert isinstance(CliRunner().invoke(main, list(map(str, command("cut", 2)))).exception, StoppedError)
    assert drawn == [(0, 2), (2, 4), (4, 5)]
    parts = tmp_path / "cut" / "parts" / "samples"
    (parts / "images.000002.npz").unlink()  # a cluster leaves such gaps
    kept = np.concatenate([np.load(file)["images"] for file in sorted(parts.iterdir())])
    drawn.append((0, 0))  # no more failures
    with monkeypatch.context() as patched:
        patched.setattr(Sampling, "draw", some)
        printed = run(*command("cut", 16, "--resume")).output
    assert drawn[4:] == [(2, 4), (5, 10)]
    assert "100 % of pixels exactly" in printed
    run(*command("whole", 16))
    cut, whole = images_of(tmp_path / "cut"), images_of(tmp_path / "whole")
    np.testing.assert_array_equal(cut, whole)  # exact scores do not depend on the batch
    np.testing.assert_array_equal(cut[[0, 1, 4]], kept)
    steps = json.loads((tmp_path / "cut" / "samples.json").read_text())["steps"]
    assert [(step["first"], step["images"]) for step in steps[::3]] == [(0, 2), (2, 2), (4, 1), (5, 5)]
    of_run = TrajectoryFile(tmp_path / "cut" / "trajectory.zarr").read().x[0]
    np.testing.assert_array_equal(of_run, np.load(tmp_path / "cut" / "samples.npz")["x_T"])
    assert "finished already" in run(*command("cut", 3, "--resume")).output


def test_a_second_process_that_draws_into_the_same_folder_is_refused(small_store, tmp_path):
    args = ("sample", small_store, "-n", 1, "-o", tmp_path / "out", *QUICK)
    with hold_folder(tmp_path / "out"):
        for more in ((), ("--resume",), ("--overwrite",)):
            message = refused(*args, *more)
            assert "another process writes to this folder; wait until it ends, or use another" in message
    run(*args)
    assert not (tmp_path / "out" / "parts.lock").exists()


def test_a_finished_run_is_not_drawn_again(store, tmp_path):
    args = ("sample", store, "-n", 2, "-o", tmp_path, *QUICK, "--resume")
    run(*args)
    written = (tmp_path / "samples.npz").stat().st_mtime_ns
    assert "finished already" in run(*args).output
    assert (tmp_path / "samples.npz").stat().st_mtime_ns == written
    assert "has samples of other settings" in refused(*args, "--seed", 1)


def test_resume_of_a_finished_run_prints_what_the_run_printed(small_store, tmp_path):
    args = ("sample", small_store, "-n", 2, "-o", tmp_path, *QUICK, "--json", "--png")
    first, again = run(*args), run(*args, "--resume")
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert again.stderr == f"{tmp_path}: finished already\n"


def test_resume_with_overwrite_replaces_a_finished_run_of_other_settings(small_store, tmp_path):
    args = ("sample", small_store, "-n", 2, *QUICK, "--resume")
    run(*args, "-o", tmp_path / "out", "--save-trajectory", "--png")
    other = (*args, "--seed", 1)
    assert "has samples of other settings" in refused(*other, "-o", tmp_path / "out")
    run(*other, "-o", tmp_path / "out", "--overwrite")
    run(*other, "-o", tmp_path / "fresh")
    np.testing.assert_array_equal(images_of(tmp_path / "out"), images_of(tmp_path / "fresh"))
    names = [sorted(file.name for file in (tmp_path / folder).iterdir()) for folder in ("out", "fresh")]
    assert names[0] == names[1]
    assert "finished already" in run(*other, "-o", tmp_path / "out", "--overwrite").output


@pytest.mark.parametrize("seed", [0, 1])
def test_an_interrupted_run_that_replaces_another_resumes(small_store, tmp_path, monkeypatch, seed):
    args = ("sample", small_store, "-n", 2, "-o", tmp_path, "--batch-size", 1, "--save-trajectory", *QUICK)
    run(*args)
    draw = Sampling.draw

    def fails(self, lo, hi, progress=None):
        if lo == 1:
            raise StoppedError
        return draw(self, lo, hi, progress)

    other = (*args, "--seed", seed)
    with monkeypatch.context() as patched:
        patched.setattr(Sampling, "draw", fails)
        failed = CliRunner().invoke(main, [*map(str, other), "--overwrite"])
    assert "1 of 2 images are finished; give --resume to continue" in failed.stderr
    run(*other, "--resume")
    assert json.loads((tmp_path / "samples.json").read_text())["settings"]["seed"] == seed
    assert TrajectoryFile(tmp_path / "trajectory.zarr").read().x.shape[1] == 2


@pytest.mark.parametrize("name", ["grid.png", "trajectory.zarr", "filmstrip.png"])
def test_resume_replaces_no_file_of_another_origin(store, tmp_path, name):
    args = ("sample", store, "-n", 2, "-o", tmp_path, *QUICK, "--save-trajectory", "--resume")
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("mine")
    assert f"already has {name}" in refused(*args)
    assert (tmp_path / name / "mine").read_text() == "mine"


@pytest.mark.parametrize("batches", [0, 1])
def test_a_run_that_fails_keeps_finished_batches_and_nothing_else(store, tmp_path, monkeypatch, batches):
    args = ("sample", store, "-n", 4, "-o", tmp_path / "out", "--batch-size", 2, *QUICK, "--save-trajectory")
    draw, done = Sampling.draw, []

    def fails(self, lo, hi, progress=None):
        if len(done) == batches:
            raise StoppedError
        done.append(lo)
        return draw(self, lo, hi, progress)

    with monkeypatch.context() as patched:
        patched.setattr(Sampling, "draw", fails)
        assert isinstance(CliRunner().invoke(main, list(map(str, args))).exception, StoppedError)
    if batches == 0:
        assert not (tmp_path / "out").exists()
        return
    shutil.rmtree(tmp_path / "out" / "trajectory.zarr")
    assert "has finished images without trajectory.zarr" in refused(*args, "--resume")
    run(*args, "--overwrite")
    assert TrajectoryFile(tmp_path / "out" / "trajectory.zarr").read().x.shape[1] == 4


def test_a_trajectory_has_a_filmstrip_and_goes_with_its_samples(store, tmp_path):
    args = ("sample", store, "-n", 2, "-o", tmp_path, *QUICK)
    assert "trajectory.zarr" not in run(*args, "--json").stdout
    done = json.loads(run(*args, "--save-trajectory", "--overwrite", "--json").stdout)
    assert str(tmp_path / "trajectory.zarr") in done["files"]
    found = TrajectoryFile(tmp_path / "trajectory.zarr").read()
    assert found.x.shape == (3, 2, 1, 28, 28)
    with np.load(tmp_path / "samples.npz") as samples:
        np.testing.assert_array_equal(found.x[0], samples["x_T"])
    with Image.open(tmp_path / "filmstrip.png") as strip:
        assert strip.width > 4 * 56  # three steps and the image
        assert strip.height > 4 * 56  # two images, noisy and denoised
    # Other samples without a trajectory leave none of an earlier run.
    run(*args, "--overwrite", "--seed", 2)
    assert not (tmp_path / "trajectory.zarr").exists()
    assert not (tmp_path / "filmstrip.png").exists()


def test_labels_given_again_have_a_row_each(store, tmp_path):
    run("sample", store, "-n", 3, "-o", tmp_path / "rows", "--label", 2, "--label", 7, *QUICK)
    with np.load(tmp_path / "rows" / "samples.npz") as samples:
        np.testing.assert_array_equal(samples["labels"], [2, 2, 2, 7, 7, 7])
        images = samples["images"]
    with Image.open(tmp_path / "rows" / "grid.png") as grid:
        assert grid.width > grid.height
    np.save(tmp_path / "noise.npy", draw_noise(0, 6, (1, 28, 28))[3:].numpy())
    run("sample", store, "-o", tmp_path / "one", "--label", 7, "--x-t", tmp_path / "noise.npy", *QUICK)
    np.testing.assert_allclose(images_of(tmp_path / "one"), images[3:], rtol=0, atol=1e-4)
    message = refused(
        "sample", store, "-o", tmp_path / "no", "--label", 2, "--label", 7, "--x-t", tmp_path / "noise.npy"
    )
    assert "has noise for 3 images, not for 2 labels; give noise for a multiple of 2 images" in message
    one = ("sample", store, "-o", tmp_path / "no", "--label", 2, "--x-t", tmp_path / "noise.npy", "-n", 2)
    assert "not for 1 label with 2 images each; leave -n out" in refused(*one)
    assert "not for 2 labels with 2 images each; give noise for 4 images" in refused(*one, "--label", 7)
    assert "--label: is given 2 times" in refused(
        "study", store, "-o", tmp_path / "s", "--estimator", "exact", "--label", 2, "--label", 7
    )


def _write_hdf5(path, noise):
    with h5py.File(path, "w") as file:
        file["x_T"] = noise


def _write_huge_chunks(path):
    with h5py.File(path, "w") as file:
        shape, chunk = (1, 1, 28, 28), (1, 1, 2**15, 2**14)
        file.create_dataset("x_T", shape, "f4", chunks=chunk, maxshape=(None,) * 4, compression="gzip")


def _write_elsewhere(path):
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "x_T", (1, 1, 28, 28), "f4", external=[(path.with_suffix(".raw"), 0, 28 * 28 * 4)]
        )


WRITERS = {
    "npy": np.save,
    "npz": lambda path, noise: np.savez(path, x_T=noise),
    "h5": _write_hdf5,
    "safetensors": lambda path, noise: save_file({"x_T": noise}, path),
    "pt": lambda path, noise: torch.save(torch.from_numpy(noise), path),
    "pth": lambda path, noise: torch.save({"x_T": torch.from_numpy(noise)}, path),
}


@pytest.fixture(scope="module")
def expected(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    run("sample", store, "-n", 2, "-o", folder, "--seed", 3, "--machine", "nearest", "--steps", 3)
    return images_of(folder)


@pytest.mark.parametrize("suffix", WRITERS)
def test_noise_is_read_from_many_formats(store, tmp_path, expected, suffix):
    path = tmp_path / f"noise.{suffix}"
    WRITERS[suffix](path, draw_noise(3, 2, (1, 28, 28)).numpy())
    run("sample", store, "-o", tmp_path / "out", "--x-t", path, "--machine", "nearest", "--steps", 3)
    np.testing.assert_array_equal(images_of(tmp_path / "out"), expected)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("code.pt", lambda path: torch.save(Evil(), path), "is no file of plain tensors"),
        ("text.pt", lambda path: path.write_text("text"), "is no file of plain tensors"),
        ("words.pt", lambda path: torch.save({"other": torch.zeros(1)}, path), "has no tensor x_T"),
        ("other.h5", lambda path: h5py.File(path, "w").close(), "has no dataset x_T"),
        ("chunks.h5", _write_huge_chunks, "has chunks of 2147483648 bytes"),
        ("elsewhere.h5", _write_elsewhere, "has its data in another file, which is not read"),
        ("text.h5", lambda path: path.write_text("text"), "cannot be read"),
        ("other.safetensors", lambda path: save_file({"a": np.zeros(1)}, path), "has no tensor x_T"),
        ("text.safetensors", lambda path: path.write_text("text"), "cannot be read"),
        ("whole.npy", lambda path: np.save(path, np.zeros((1, 1, 28, 28), int)), "holds int64, not floats"),
        ("number.npy", lambda path: np.save(path, np.float32(1)), "holds an array of shape ()"),
        ("noise.csv", lambda path: path.write_text("1"), "is no file of noise; known: .npz, .npy"),
    ],
)
def test_other_files_are_no_noise(store, tmp_path, monkeypatch, name, write, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    assert words in refused("sample", store, "-o", tmp_path / "out", "--x-t", tmp_path / name)
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "out").exists()


def test_images_to_start_from_and_known_pixels(store, fashion, tmp_path):
    picture = fashion[0][50].squeeze()
    Image.fromarray(picture).save(tmp_path / "picture.png")
    mask = np.zeros((28, 28), np.uint8)
    mask[:, :14] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    clean = picture / 127.5 - 1
    run(
        "sample", store, "-n", 2, "-o", tmp_path / "known", "--known", tmp_path / "picture.png",
        "--mask", tmp_path / "mask.png", *QUICK,
    )  # fmt: skip
    np.testing.assert_allclose(
        images_of(tmp_path / "known")[:, 0, :, :14], np.stack([clean[:, :14]] * 2), rtol=0, atol=1e-6
    )
    start = ("--start", tmp_path / "picture.png", "--strength", 0.3, "--steps", 10, "--estimator", "exact")
    run("sample", store, "-n", 1, "-o", tmp_path / "start", *start)
    record = json.loads((tmp_path / "start" / "samples.json").read_text())
    assert [step["t"] for step in record["steps"]] == [0.3, 0.2, 0.1]
    assert record["settings"]["strength"] == 0.3
    assert np.corrcoef(images_of(tmp_path / "start").ravel(), clean.ravel())[0, 1] > 0.8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--strength", 0.5), "--strength: goes with --start, which is missing; give --start"),
        (("--mask", "m.png"), "--mask: goes with --known, which is missing"),
        (("--known", "m.png"), "--known: goes with --mask, which is missing"),
        (("--start", "none.png"), "none.png"),
        (("--noise", "pink"), "'pink' is not one of cosine, squaredcos, linear, flow, edm"),
        (("--spacing", "odd"), "'odd' is not one of uniform, karras, log-snr"),
        (("--sampler", "odd"), "'odd' is not one of ddim, ddpm, euler, heun, dpmpp"),
    ],
)
def test_options_that_do_not_go_together_are_refused(store, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused("sample", store, "-o", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_other_samplers_and_noise(store, tmp_path):
    options = ("--sampler", "heun", "--spacing", "karras", "--noise", "edm", "--steps", 4)
    run("sample", store, "-n", 1, "-o", tmp_path, "--machine", "nearest", *options)
    record = json.loads((tmp_path / "samples.json").read_text())
    assert len(record["steps"]) == 5
    assert {"sampler": "heun", "spacing": "karras", "noise": "edm"}.items() <= record["settings"].items()


def test_single_images_and_names_of_rows(small_store, tmp_path):
    args = ("sample", small_store, "-o", tmp_path / "out", "-n", 2, "--machine", "nearest", "--steps", 2)
    printed = run(*args, "--png", "--label", 3, "--label", 9).stdout
    names = sorted(path.name for path in (tmp_path / "out" / "png").iterdir())
    assert names == [f"0000{i}.png" for i in range(4)]
    with Image.open(tmp_path / "out" / "png" / "00002.png") as picture:
        levels = ((images_of(tmp_path / "out")[2, 0] + 1) * 127.5).clip(0, 255).round()
        np.testing.assert_array_equal(np.asarray(picture), levels)
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.width > 2 * 112 + 4 + 40  # the names of the labels
        assert grid.height == 2 * 112 + 4
    assert "s per image" in printed
    assert f"written: {tmp_path / 'out' / 'grid.png'}, " in printed
    assert str(tmp_path / "out" / "png") in printed
    (tmp_path / "out" / "png" / "mine.txt").write_text("")
    run(*args, "--overwrite")
    assert [path.name for path in (tmp_path / "out" / "png").iterdir()] == ["mine.txt"]
    assert "already has grid.png" in refused(*args, "--png")
