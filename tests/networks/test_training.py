"""Training: it learns, it resumes exactly, and it refuses what does not fit."""

import csv
import json
import os

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import patchindex as pi
from patchindex.errors import InputError, OutputExistsError, PatchIndexError
from patchindex.images.by_label import TrainingImages
from patchindex.networks import TrainSettings, batches, loop, open_run, train
from patchindex.networks.losses import COLUMNS


def weights(folder, name="weights.safetensors"):
    return load_file(folder / name)


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def losses(folder):
    with (folder / "loss.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def rows_every_three_steps(monkeypatch):
    monkeypatch.setattr(loop, "STEPS_PER_ROW", 3)


def test_training_lowers_the_loss_and_writes_a_run(pictures, small, tmp_path):
    record = train(pictures[0], tmp_path / "run", small(steps=60, lr=3e-3, validation=8), threads=1)
    rows = losses(tmp_path / "run")
    assert [int(row["step"]) for row in rows] == list(range(3, 61, 3))
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    assert float(rows[-1]["validation_loss"]) < 0.5 * float(rows[0]["validation_loss"])
    assert record == json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["step"], record["epochs"], record["images"]["count"]) == (60, 30.0, 32)
    assert record["loss"] == float(rows[-1]["loss"])
    assert record["seconds"] > 0 < record["cpu_seconds"]
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "settings",
    [{}, {"precision": "bfloat16", "ema": 0.9}, {"conditional": True, "validation": 6}],
    ids=["float32", "bfloat16-ema", "labels-validation"],
)
def test_a_resumed_run_ends_with_the_same_weights(pictures, small, tmp_path, settings):
    images, labels = pictures
    train(images, tmp_path / "whole", small(steps=7, **settings), labels=labels, threads=1)
    for steps in (2, 5, 7):
        train(
            images, tmp_path / "parts", small(steps=steps, **settings), labels=labels, threads=1, resume=True
        )
    for name in ("weights.safetensors", "state.safetensors"):
        assert_same(weights(tmp_path / "whole", name), weights(tmp_path / "parts", name))
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert [{**row, "seconds": 0} for row in whole] == [{**row, "seconds": 0} for row in parts]
    assert [int(row["step"]) for row in whole] == [3, 6, 7]


def test_a_seed_determines_the_weights(pictures, small, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(pictures[0], tmp_path / name, small(seed=seed), threads=1)
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not torch.equal(*(weights(tmp_path / name)["first.weight"] for name in "bc"))


def test_seeds_of_more_than_32_bits_have_batches_of_their_own(pictures):
    """In one list of words, 5 + 3 * 2**32, stream 2 and step 0 are the same as 5, stream 3 and batch 2."""
    source = pi.open_images(pictures[0])
    held_out = list(batches.held_out_batches(source, 4, 5))[2]
    trained_on = batches.Batches(source, 4, 5 + 3 * 2**32).at(0)
    assert not np.array_equal(held_out.eps, trained_on.eps)


def test_images_that_do_not_fit_into_memory_are_read_at_each_step(pictures, small, tmp_path, monkeypatch):
    train(pictures[0], tmp_path / "memory", small(), threads=1)
    monkeypatch.setattr(batches, "parse_memory", lambda memory: 100)
    train(pictures[0], tmp_path / "disk", small(), threads=1)
    assert_same(weights(tmp_path / "memory"), weights(tmp_path / "disk"))


def test_the_average_of_the_weights_is_the_result(pictures, small, tmp_path):
    train(pictures[0], tmp_path / "run", small(steps=2, ema=0.5), threads=1)
    state = weights(tmp_path / "run", "state.safetensors")
    averaged = {
        n.removeprefix("average.module."): w for n, w in state.items() if n.startswith("average.module.")
    }
    assert_same(weights(tmp_path / "run"), averaged)
    assert not torch.equal(averaged["first.weight"], state["network.first.weight"])


def test_time_ends_a_run_and_counts_over_its_parts(pictures, small, tmp_path):
    settings = small(steps=None, minutes=1e-6)
    first = train(pictures[0], tmp_path / "run", settings, threads=1)
    again = train(pictures[0], tmp_path / "run", settings, threads=1, resume=True)
    assert first["seconds"] >= 6e-5
    assert again["step"] == first["step"]
    assert again["seconds"] >= first["seconds"]


def test_epochs_end_a_run(pictures, small, tmp_path):
    record = train(pictures[0], tmp_path / "run", small(steps=None, epochs=2), threads=1)
    assert (record["step"], record["epochs"]) == (6, 2.0)
    assert losses(tmp_path / "run")[-1]["images_seen"] == "80"


def test_a_network_knows_its_images_in_a_store_of_them(pictures, small, tmp_path):
    images, labels = pictures
    train(images, tmp_path / "run", small(steps=1), labels=labels, threads=1)
    network = open_run(tmp_path / "run")
    index = pi.build_index(images, tmp_path / "s.zarr", machine="LS", labels=labels)
    assert (np.diff(index.training.source_ids) < 0).any()  # the store is sorted by label
    network.check_images(index.training)
    network.check_images(pi.open_images(images))
    assert network.images.fingerprint == index.attributes["settings"]["images"]
    with pytest.raises(InputError, match="was trained on other images"):
        network.check_images(pi.open_images(images[:-1]))
    with pytest.raises(InputError, match=r"images of shape \(1, 8, 8\), not \(1, 8, 6\)"):
        network.check_images(pi.open_images(images[:, :, :6]))


def test_a_network_with_labels_knows_the_labels_of_its_images(pictures, run):
    images, labels = pictures
    network = open_run(run)
    network.check_images(pi.open_images(images))
    network.check_images(pi.open_images(images, labels=labels))
    network.check_images(TrainingImages(images, labels))
    with pytest.raises(InputError, match="was trained with other labels of these images"):
        network.check_images(TrainingImages(images, labels + 1))


def test_a_run_is_not_replaced_by_accident(pictures, small, tmp_path):
    train(pictures[0], tmp_path, small(steps=1), threads=1)
    before = (tmp_path / "weights.safetensors").read_bytes()
    with pytest.raises(
        OutputExistsError, match=r"already has weights.safetensors, .*resume=True.*overwrite=True"
    ):
        train(pictures[0], tmp_path, small(steps=1), threads=1)
    assert (tmp_path / "weights.safetensors").read_bytes() == before
    train(pictures[0], tmp_path, small(steps=1, seed=1), threads=1, overwrite=True)
    assert (tmp_path / "weights.safetensors").read_bytes() != before


def test_a_run_of_other_settings_is_replaced_on_resume_only_if_asked(pictures, small, tmp_path):
    first = train(pictures[0], tmp_path, small(steps=2), threads=1)
    both = {"resume": True, "overwrite": True, "threads": 1}
    assert train(pictures[0], tmp_path, small(steps=4), **both)["created"] == first["created"]
    before = (tmp_path / "weights.safetensors").read_bytes()
    other = small(steps=3, batch_size=3)
    with pytest.raises(InputError, match=r"batch_size: the run has .*, not 3; .*overwrite=True"):
        train(pictures[0], tmp_path, other, threads=1, resume=True)
    assert (tmp_path / "weights.safetensors").read_bytes() == before
    replaced = train(pictures[0], tmp_path, other, **both)
    assert (replaced["step"], replaced["settings"]["batch_size"]) == (3, 3)
    alone = train(pictures[0], tmp_path / "alone", other, threads=1)
    assert replaced["loss"] == alone["loss"]


def test_a_network_without_the_state_to_continue_from_is_kept(pictures, small, tmp_path):
    train(pictures[0], tmp_path, small(steps=2))
    (tmp_path / "state.safetensors").unlink()
    before = (tmp_path / "weights.safetensors").read_bytes()
    with pytest.raises(OutputExistsError, match=r"has a network, and no state.safetensors to continue from"):
        train(pictures[0], tmp_path, small(steps=1), resume=True)
    assert (tmp_path / "weights.safetensors").read_bytes() == before
    assert train(pictures[0], tmp_path, small(steps=1), resume=True, overwrite=True)["step"] == 1


def test_a_run_may_be_in_the_folder_that_the_process_is_in(pictures, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(pictures[0], ".", small(steps=1), threads=1)["step"] == 1
    assert (tmp_path / "weights.safetensors").is_file()


def test_a_file_in_the_place_of_the_run_folder_is_refused(pictures, small, tmp_path):
    (tmp_path / "run").write_text("notes")
    for folder in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with pytest.raises(InputError, match="run: cannot write there; use a folder that you may write to"):
            train(pictures[0], folder, small(steps=1), threads=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every folder")
def test_the_run_folder_has_to_be_writable_and_not_the_folder_above(pictures, small, tmp_path):
    above = tmp_path / "above"
    run = above / "run"
    run.mkdir(parents=True)
    above.chmod(0o500)
    assert train(pictures[0], run, small(steps=1), threads=1)["step"] == 1
    with pytest.raises(InputError, match="above: cannot write there"):
        train(pictures[0], above / "new", small(steps=1), threads=1)
    run.chmod(0o500)
    with pytest.raises(InputError, match="run: cannot write there"):
        train(pictures[0], run, small(steps=2), threads=1, resume=True)
    above.chmod(0o700)
    run.chmod(0o700)


def test_two_processes_do_not_train_in_one_folder(pictures, small, tmp_path):
    with FileLock(tmp_path / "train.lock"), pytest.raises(InputError, match="another process trains in this"):
        train(pictures[0], tmp_path, small(), threads=1)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("first", [str, os.path.abspath])
def test_a_run_resumes_whatever_the_spelling_of_the_path_of_its_images(
    pictures, small, tmp_path, monkeypatch, first
):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", pictures[0])
    for steps, source in ((1, first("a.npy")), (2, "./a.npy")):
        record = train(source, tmp_path / "run", small(steps=steps), threads=1, resume=True)
    assert (record["step"], record["images"]["source"]) == (2, "./a.npy")


def test_other_settings_or_images_are_refused_on_resume(pictures, small, tmp_path):
    train(pictures[0], tmp_path, small(steps=1), threads=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for settings, message in [
        ({"lr": 0.1}, "lr: the run has 0.001, not 0.1"),
        ({"options": {"channels": 32, "layers": 1}}, "channels: the run has 16, not 32"),
        ({"ema": 0.9}, "ema: the run has None, not 0.9"),
    ]:
        with pytest.raises(InputError, match=message):
            train(pictures[0], tmp_path, small(**settings), threads=1, resume=True)
    with pytest.raises(InputError, match="the run has other images"):
        train(pictures[0][1:], tmp_path, small(), threads=1, resume=True)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conditional": True}, "conditional: the images have no labels; give labels"),
        ({"validation": 40}, "validation: leaves none of 40 images"),
        ({"arch": "unet", "options": {"widths": (16,) * 5}}, "multiples of 16"),
    ],
)
def test_settings_that_do_not_fit_the_images_leave_nothing(pictures, small, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        train(pictures[0], tmp_path / "run", small(**settings))
    assert not (tmp_path / "run").exists()


def test_settings_may_be_numbers_of_numpy(pictures, tmp_path):
    numbers = {"batch_size": np.int64(16), "steps": np.int32(2), "seed": np.uint8(1), "lr": np.float32(1e-3)}
    settings = TrainSettings(options={"channels": np.int64(16), "layers": np.int64(1)}, **numbers)
    record = train(pictures[0], tmp_path / "run", settings, threads=1)
    assert record["architecture"]["channels"] == 16
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["batch_size"] == 16
    assert train(pictures[0], tmp_path / "run", settings, threads=1, resume=True)["step"] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": 5}, "options: must be a mapping, got 5"),
        ({"noise": "parabola"}, "unknown noise schedule 'parabola'"),
        ({"noise": ["cosine"]}, "unknown noise schedule"),
        ({"precision": "int8"}, "unknown precision 'int8'"),
        ({"batch_size": 0}, "batch_size: must be at least 1"),
        ({"batch_size": True}, "batch_size: must be a whole number"),
        ({"epochs": 0}, "epochs: must be at least 1"),
        ({"lr": 0.0}, "lr: must be above 0"),
        ({"lr": float("nan")}, "lr: must be above 0"),
        ({"lr": 10**400}, "lr: must be above 0"),
        ({"lr_decay": 1.5}, "lr_decay: must be above 0 and at most 1"),
        ({"minutes": -1}, "minutes: must be above 0"),
        ({"ema": 1.0}, "ema: must be above 0 and below 1"),
    ],
)
def test_wrong_settings_are_refused(small, settings, message):
    with pytest.raises(InputError, match=message):
        small(**settings)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(pictures, small, tmp_path):
    train(pictures[0], tmp_path, small(steps=1, lr=1e30), threads=1)
    before = weights(tmp_path)
    with pytest.raises(PatchIndexError, match="the loss is not finite at step 3; give a smaller lr"):
        train(pictures[0], tmp_path, small(steps=6, lr=1e30), threads=1, resume=True)
    assert_same(weights(tmp_path), before)


@pytest.mark.parametrize(
    "change",
    [
        {"run": None},
        {"losses": [{"step": 1}]},
        {"lr": "fast"},
        {"loss_sum": None},
        {"run": {"settings": {}}},
        {"lr": 10**400},
        {"loss_sum": float("nan")},
        {"losses": [dict.fromkeys(COLUMNS, "x")]},
        {"step": -1},
        {"step": 1.5},
        {"step": 10**400},
        {"seconds": True},
    ],
)
def test_a_damaged_state_is_refused_on_resume(pictures, small, tmp_path, change):
    train(pictures[0], tmp_path, small(steps=1), threads=1)
    path = tmp_path / "state.safetensors"
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["patchindex"])
    if {*change} <= {*header["run"]} - {*header}:
        change = {"run": {**header["run"], **change}}
    save_file(load_file(path), path, {"patchindex": json.dumps({**header, **change})})
    with pytest.raises(InputError, match=r"start again with overwrite=True|the run has None"):
        train(pictures[0], tmp_path, small(), threads=1, resume=True)


@pytest.mark.parametrize("step", [-1.0, 2.0, -1e30])
def test_an_optimiser_of_other_steps_is_refused_on_resume(pictures, small, tmp_path, step):
    train(pictures[0], tmp_path, small(steps=1), threads=1)
    path = tmp_path / "state.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith("optimiser.step."))
    save_file({**tensors, name: torch.tensor(step)}, path, metadata)
    before = (tmp_path / "weights.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"is damaged .*after 1 steps.*start again with overwrite=True"):
        train(pictures[0], tmp_path, small(), threads=1, resume=True, overwrite=True)
    assert (tmp_path / "weights.safetensors").read_bytes() == before
