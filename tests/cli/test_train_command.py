"""`patchindex train`: the run folder, its JSON, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from commands import refused, run
from safetensors.torch import load_file

from patchindex.networks import open_run

SMALL = ("--channels", 16, "--layers", 1, "--batch-size", 16, "--threads", 1, "--resize", 8)


def test_train_writes_a_run_that_resumes(source, tmp_path):
    args = ("train", source, "-o", tmp_path / "run", *SMALL, "--conditional", "--validation", 8)
    record = json.loads(run(*args, "--steps", 2, "--json").stdout)
    assert (record["step"], record["images"]["count"], record["shape"]) == (2, 32, [1, 8, 8])
    assert record["architecture"] == {"name": "resnet", "channels": 16, "layers": 1, "padding": "zeros"}
    files = ["loss.csv", "loss.png", "run.json", "state.safetensors", "weights.safetensors"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == files
    assert "already has weights.safetensors" in refused(*args, "--steps", 2)
    assert "--lr: the run has 0.0001, not 0.01" in refused(*args, "--steps", 3, "--lr", 0.01, "--resume")
    printed = run(*args, "--steps", 3, "--resume").stdout
    assert "3 steps (1.5 epochs)" in printed
    network = open_run(tmp_path / "run")
    x = torch.zeros(1, 1, 8, 8)
    assert network.score(x, 0.5, label=int(network.labels[0])).shape == x.shape
    whole = (*args[:3], tmp_path / "whole", *args[4:])
    run(*whole, "--steps", 3)
    one, other = (load_file(tmp_path / name / "weights.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    run(*args, "--steps", 1, "--overwrite")
    assert open_run(tmp_path / "run").run["step"] == 1


def test_the_record_of_a_run_trains_the_same_weights(source, tmp_path):
    options = ("--steps", 2, "--limit", 20, "--seed", 3, "--noise", "linear")
    run("train", source, "-o", tmp_path / "run", *SMALL, *options)
    record = tmp_path / "run" / "run.json"
    command = json.loads(record.read_text())["command"]
    assert command["name"] == "train"
    assert command["options"]["channels"] == 16
    assert not {"output", "resume", "overwrite"} & command["options"].keys()
    said = run("train", "--config", record, "-o", tmp_path / "again").stderr
    assert said.startswith(f"patchindex train {source} --output ")
    one, other = (load_file(tmp_path / name / "weights.safetensors") for name in ("run", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    run("train", "--config", record, "-o", tmp_path / "run", "--steps", 4, "--resume")
    resumed = json.loads(record.read_text())
    assert resumed["step"] == resumed["command"]["options"]["steps"] == 4


def test_a_unet_has_its_own_options(source, tmp_path):
    args = ("train", source, "-o", tmp_path, "--arch", "UNet", "--widths", "16,24", "--attention", 1)
    record = json.loads(
        run(*args, "--steps", 1, "--resize", 8, "--limit", 4, "--threads", 1, "--json").stdout
    )
    assert record["architecture"] == {
        "name": "unet", "widths": [16, 24], "padding": "zeros", "attention": [1], "embedding_dims": 256
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--arch", "vgg"], "'--arch': 'vgg' is not one of resnet, unet, unet-attention"),
        (["--channels", 20], "--channels: must be a multiple of 8, got 20; use 16"),
        (["--widths", "16,24"], "--widths: resnet has no such option"),
        (["--arch", "unet", "--widths", "many"], "--widths: 'many' is not a list of integers"),
        (["--arch", "unet", "--layers", 3], "--layers: unet has no such option"),
        (["--arch", "unet", "--widths", "16,16,16", "--resize", 30], "sides are multiples of 4, not 30×30"),
        (["--padding", "same"], "'--padding': 'same' is not one of zeros, circular"),
        (["--precision", "int8"], "'--precision': 'int8' is not one of float32, bfloat16"),
        (["--lr", 0], "--lr: must be above 0, got 0.0"),
        (["--ema", 1], "--ema: must be above 0 and below 1"),
        (["--minutes", 0], "--minutes: must be above 0"),
        (["--validation", 40], "--validation: leaves none of 40 images"),
        (["--device", "tpu"], "--device: unknown device 'tpu'"),
        (["--seed", -1], "'--seed': -1 is not in the range x>=0"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(source, tmp_path, args, message):
    assert message in refused("train", source, "-o", tmp_path / "run", *args)
    assert not (tmp_path / "run").exists()


def test_class_labels_need_labels(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((4, 8, 8), np.uint8))
    line = refused("train", tmp_path / "images.npy", "-o", tmp_path / "run", "--conditional")
    assert "--conditional: the images have no labels; give --labels" in line


def test_a_file_is_no_folder_for_a_run(source, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is not a folder that you can write to" in refused("train", source, "-o", tmp_path / "file")
