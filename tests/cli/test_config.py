"""Options from a file: --config with TOML, and with the JSON of an earlier run."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from commands import refused, run
from patchindex_cli.app import main
from PIL import Image

QUICK = ("--steps", 3, "--threads", 1, "-n", 2)


@pytest.fixture
def store(small_store):
    return small_store


def images_of(folder):
    with np.load(folder / "samples.npz") as samples:
        return samples["images"]


def refused_run(*args):
    """Run a command that prints itself and fails; return the line of its error."""
    command, error = run(*args, code=2).stderr.splitlines()
    assert command.startswith("patchindex sample ")
    assert error.startswith("Error: ")
    return error


def write(path, text):
    path.write_text(text)
    return path


def test_a_toml_file_has_options_and_arguments(store, tmp_path):
    file = write(
        tmp_path / "run.toml",
        f'store = "{store}"\noutput = "{tmp_path / "out"}"\nn = 1\nsteps = 5\nlabel = [3, "9"]\n'
        'estimator = "exact"\nlocality = [3, 5]\nbatch_size = 1\nsave-trajectory = true\nthreads = 1\n',
    )
    said = run("sample", "--config", file, "--steps", 3, "--nearest-scales")
    assert said.stderr.splitlines()[0] == (
        f"patchindex sample {store} -n 1 --output {tmp_path / 'out'} --estimator exact --nearest-scales "
        "--save-trajectory --locality 3,5 --label 3 --label 9 --steps 3 --batch-size 1 --threads 1"
    )
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert record["settings"]["steps"] == 3  # the command line wins
    assert record["command"]["options"]["label"] == ["3", "9"]
    assert (tmp_path / "out" / "trajectory.zarr").exists()
    alone = tmp_path / "alone"
    options = ("--locality", "3,5", "--label", 3, "--label", 9, "--batch-size", 1, "--nearest-scales")
    run("sample", store, "-o", alone, "-n", 1, "--steps", 3, "--threads", 1, "--estimator", "exact", *options)
    np.testing.assert_array_equal(images_of(alone), images_of(tmp_path / "out"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 3", r"unknown key 'step', did you mean 'steps'\?; sample takes .*batch-size, .*store"),
        ("network = 'run'", "unknown key 'network', an option of calibrate, compare; sample takes "),
        ("config = 'other.toml'", "unknown key 'config'"),
        ("steps = 20.5", "steps: 20.5 is a float|steps: .*'20.5' is not a valid integer"),
        ("steps = true", "steps: True is true or false; give a whole number"),
        ("steps = '20'", "steps: '20' is text; give a whole number"),
        ("steps = 1", "steps: 1 is not in the range x>=2"),
        ("steps = [20]", r"steps: \[20\] is an array; give a whole number"),
        ("strength = 'much'", "strength: 'much' is text; give a number"),
        ("resume = 'yes'", "resume: 'yes' is neither true nor false"),
        ("locality = true", "locality: True is true or false; give text"),
        ("sampler = 'odd'", "sampler: 'odd' is not one of ddim"),
        ("estimator = ['exact']", "estimator: .* is an array; give text"),
        ("[sample]\nsteps = 3", "'sample' is a table; write keys and values without a table"),
        ("seed = 2026-01-01", "seed: .* is a date; give a whole number"),
        ("batch-size = 1\nbatch_size = 2", "batch-size is given twice"),
        ('output = "s3://bucket/x"', "output: is a URL"),
        ('store = "a\\u0000b"', "store: has a null character"),
        ("steps = ", "is no TOML"),
        ("steps = " + "[" * 100_000, "is no TOML"),
        ('"\\u001b[2J" = 3', r"unknown key '\\\\?x1b\[2J'"),
    ],
)
def test_a_wrong_key_or_type_is_one_line(store, tmp_path, text, message):
    file = write(tmp_path / "run.toml", text)
    said = refused("sample", store, "-o", tmp_path / "out", "--config", file)
    assert re.search(f"run.toml: {message}|run.toml: .*{message}", said), said
    assert "\x1b" not in said
    assert not (tmp_path / "out").exists()


def test_a_config_is_a_regular_file_of_limited_size(store, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo.toml")
    monkeypatch.setattr("patchindex_cli.config.MOST_BYTES", 10)
    write(tmp_path / "long.toml", "steps = 300000")
    (tmp_path / "bytes.toml").write_bytes(b"a = '\xff'")
    write(tmp_path / "list.json", "[1]")
    for name, what in (
        ("fifo.toml", "is a FIFO, not a regular file"),
        ("long.toml", "holds more than 10 bytes"),
        ("bytes.toml", "is no TOML"),
        ("list.json", "has no keys"),
        ("none.toml", "cannot be read"),
        (".", "is a folder"),
    ):
        assert what in refused("sample", store, "-o", tmp_path / "o", "--config", tmp_path / name)


def test_a_json_file_may_have_options_too(store, tmp_path):
    file = write(tmp_path / "run.json", json.dumps({"machine": "nearest", "steps": 2, "n": 1}))
    run("sample", store, "-o", tmp_path / "out", "--config", file)
    assert images_of(tmp_path / "out").shape[0] == 1


@pytest.fixture(scope="module")
def conditions(fashion, tmp_path_factory):
    """A picture, a mask of its left half, and noise."""
    folder = tmp_path_factory.mktemp("conditions")
    Image.fromarray(fashion[0][50, 8:20, 8:20].squeeze()).save(folder / "picture.png")
    Image.fromarray(np.repeat(np.uint8([[255, 0]]), 6, 1).repeat(12, 0)).save(folder / "mask.png")
    np.save(folder / "noise.npy", np.random.default_rng(0).normal(size=(2, 1, 12, 12)).astype(np.float32))
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ("--seed", 5),
        ("--machine", "ELS:estimator=exact", "--label", 3, "--label", 9, "--columns", 2, "--batch-size", 3),
        ("--known", "picture.png", "--mask", "mask.png", "--sampler", "ddpm", "--locality", "k.json"),
        ("--start", "picture.png", "--strength", 0.5, "--save-trajectory"),
        ("--x-t", "noise.npy", "--estimator", "topk:candidates=64,probes=8"),
    ],
)
def test_the_record_of_a_run_repeats_the_same_bytes(store, conditions, tmp_path, monkeypatch, options):
    monkeypatch.chdir(conditions)
    write(conditions / "k.json", '{"version": 1, "name": "k", "pairs": [[0.05, 3], [0.9, 7]]}')
    args = QUICK if "--x-t" not in options else QUICK[:-2]
    run("sample", store, "-o", tmp_path / "first", *args, *options)
    record = tmp_path / "first" / "samples.json"
    said = run("sample", "--config", record, "-o", tmp_path / "again")
    assert said.stderr.startswith(f"patchindex sample {store} ")
    assert images_of(tmp_path / "again").tobytes() == images_of(tmp_path / "first").tobytes()
    first, again = (json.loads((tmp_path / f / "samples.json").read_text()) for f in ("first", "again"))
    assert first["command"] == again["command"]
    assert first["settings"] == again["settings"]
    assert (tmp_path / "first/grid.png").read_bytes() == (tmp_path / "again/grid.png").read_bytes()


def test_another_store_at_the_same_path_is_refused(source, store, fashion, tmp_path):
    moved = tmp_path / "moved.zarr"
    shutil.copytree(store, moved)
    run("sample", moved, "-o", tmp_path / "out", *QUICK, "--estimator", "exact")
    shutil.rmtree(moved)
    np.savez(tmp_path / "other.npz", images=fashion[0][50:90, 8:20, 8:20])
    run("build", tmp_path / "other.npz", "-o", moved, "--locality", "3,3,5,7", "--no-tune", "--threads", 1)
    args = ("sample", "--config", tmp_path / "out" / "samples.json", "-o", tmp_path / "again")
    said = refused_run(*args)
    assert re.search(r"moved.zarr: differs from the input of .*samples.json \(fingerprint .*--other-in", said)
    assert not (tmp_path / "again").exists()
    run(*args, "--other-inputs")
    said = run("sample", moved, *args[1:-1], tmp_path / "chosen")  # the command line is a choice
    assert "moved.zarr: differs from the input of" in said.stderr
    run("sample", store, *args[1:-1], tmp_path / "same")
    assert images_of(tmp_path / "same").tobytes() == images_of(tmp_path / "out").tobytes()
    assert "other-inputs" not in (tmp_path / "again" / "samples.json").read_text()


def test_changed_files_of_a_record_are_refused(store, conditions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(conditions / "noise.npy", "noise.npy")
    write(tmp_path / "k.json", '{"version": 1, "name": "k", "pairs": [[0.05, 3], [0.9, 7]]}')
    nearest = ("--machine", "nearest", "--steps", 3)
    run("sample", store, "-o", "noise", "--x-t", "noise.npy", *nearest)
    run(
        "sample", store, "-o", "scales", "-n", 1, "--locality", "k.json", "--estimator", "exact", "--steps", 3
    )
    np.save("noise.npy", np.zeros((2, 1, 12, 12), np.float32))
    write(tmp_path / "k.json", '{"version": 1, "name": "k", "pairs": [[0.05, 5], [0.9, 7]]}')
    assert "noise.npy: differs from the input of" in refused_run(
        "sample", "--config", "noise/samples.json", "-o", "again"
    )
    assert "scales/samples.json: the run had other settings: locality" in refused_run(
        "sample", "--config", "scales/samples.json", "-o", "again"
    )
    run("sample", "--config", "scales/samples.json", "-o", "again", "--locality", "3,7")
    run("sample", "--config", "noise/samples.json", "-o", "more", "--other-inputs")


def test_a_record_of_another_command_or_an_old_version_is_refused(store, tmp_path):
    for content, what in (
        ({"command": {"name": "study", "options": {}}}, "is a run of 'study', not of sample"),
        ({"command": {"name": "sample", "options": 3}}, "is a run of 'sample'"),
        ({"command": {"name": "sample", "options": {"output": "/x"}}}, "for the command line only"),
        ({"settings": {}, "versions": {}}, "does not record the options of its run"),
    ):
        file = write(tmp_path / "samples.json", json.dumps(content))
        assert what in refused("sample", "-o", tmp_path / "out", "--config", file)


def test_every_command_that_computes_takes_the_options():
    others = {"info", "compare-table"}
    for name, command in main.commands.items():
        options = {flag for p in command.params for flag in p.opts}
        assert ({"--config", "--verbose", "--quiet"} <= options) == (name not in others), name


def test_another_operating_curve_is_one_line(copied, tmp_path):
    args = ("--steps", 2, "--threads", 1, "-n", 1)
    run("sample", copied, "-o", tmp_path / "samples", *args)
    run("sample", copied, "-o", tmp_path / "exact", "--estimator", "exact", *args)
    run("study", copied, "-o", tmp_path / "study", *args)
    records = {"sample": tmp_path / "samples/samples.json", "study": tmp_path / "study/study.json"}

    def said(command, record):
        text = run(command, "--config", record, "-o", tmp_path / "again", "--overwrite").stderr
        return [line for line in text.splitlines() if "operating curve" in line]

    assert not any(said(*each) for each in records.items())
    run("tune", copied)
    for command, record in records.items():
        assert said(command, record) == [
            f"{copied}: has another operating curve than in {record}; results may differ"
        ]
    assert not said("sample", tmp_path / "exact" / "samples.json")


def test_the_study_of_another_store_is_one_line(copied, source, tmp_path):
    run("study", copied, "-o", tmp_path / "study", "--steps", 2, "--estimator", "exact", "--threads", 1)
    record = tmp_path / "study" / "study.json"
    shutil.rmtree(copied)
    run("build", source, "-o", copied, "--locality", "3,3,5,7", "--limit", 30, "--no-tune", "--threads", 1)
    said = run("study", "--config", record, "-o", tmp_path / "again").stderr
    assert f"{copied}: has other images than in {record}; results may differ" in said
