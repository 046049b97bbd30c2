"""`patchindex calibrate`: files, table, networks, resumption, and what it refuses."""

import json

import numpy as np
import pytest
from commands import refused, run

from patchindex.study.calibration_ways import OnImages
from patchindex.study.parts import hold_folder

FILES = ["calibration.csv", "calibration.json", "calibration.png", "parts", "schedule.json"]
SMALL = ("--resize", 12, "--scales", "3,5", "--steps", 3, "--threads", 1)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_calibrate_writes_a_schedule_that_sample_takes(source, store, tmp_path):
    out = tmp_path / "scales"
    args = ("calibrate", source, "-o", out, "-n", 2, *SMALL, "--beside", "mnist-resnet-zeros")
    printed = run(*args).stdout
    assert "memorises from" in printed
    assert f"{out / 'schedule.json'}, {out / 'calibration.png'}" in printed.replace("\n", "")
    assert names(out) == FILES
    assert "already has schedule.json" in refused(*args)
    assert "already has schedule.json" in refused(*args, "--resume")
    again = json.loads(run(*args, "--overwrite", "--json").stdout)
    assert len(again["summary"]) == 2
    assert again["settings"]["images"] == 38
    schedule = ("--locality", out / "schedule.json", "--resize-locality", "--nearest-scales")
    run("sample", store, "-o", tmp_path / "images", "-n", 1, "--steps", 2, *schedule)


def test_calibrate_on_a_trained_network(source, tmp_path):
    train = ("train", source, "-o", tmp_path / "run", "--channels", 16, "--layers", 1, "--steps", 2)
    run(*train, "--resize", 12, "--conditional")
    out, network = tmp_path / "scales", ("--network", tmp_path / "run")
    args = ("calibrate", source, "-o", out, *network, *SMALL)
    message = refused(*args, "--limit", 20)
    assert "trained on other images" in message
    assert "--other-images" in message
    found = json.loads(run(*args, "-n", 3, "--machine", "els", "--json").stdout)
    # A class-conditional network draws images of each of its labels in turn.
    assert found["settings"]["labels"] == [0, 1, 2]
    assert found["settings"]["machine"] == "ELS"
    assert json.loads((out / "schedule.json").read_text())["provenance"]["network"].endswith("run")
    run(*args, "-n", 1, "--label", 9, "--other-images", "--limit", 20, "--overwrite")
    assert "cannot be used with a network" in refused(*args, "--overwrite", "--held-out", source)


def test_calibrate_takes_a_store_and_other_held_out_images(store, source, tmp_path):
    args = ("calibrate", store, "-o", tmp_path / "scales", "-n", 1, *SMALL[2:], "--held-out")
    assert "there are 0 images that are not training images" in refused(*args, source)
    with np.load(source) as file:
        np.savez(tmp_path / "negatives.npz", images=255 - file["images"])
    args += (tmp_path / "negatives.npz",)
    found = json.loads(run(*args, "--json").stdout)
    assert found["settings"]["images"] == 40
    assert found["settings"]["machine"] == "ELS"


def test_an_interrupted_run_is_resumed(source, tmp_path, monkeypatch):
    compare = OnImages.compare

    def interrupt(way, step, *rest):
        if step.i == 1:
            raise KeyboardInterrupt
        return compare(way, step, *rest)

    out = tmp_path / "scales"
    args = ("calibrate", source, "-o", out, "-n", 2, *SMALL)
    monkeypatch.setattr(OnImages, "compare", interrupt)
    assert "interrupted; continue with --resume" in refused(*args, code=1)
    monkeypatch.undo()
    assert names(out) == ["parts"]
    assert "continue with --resume, or use --overwrite" in refused(*args)
    assert "use the same settings, another folder, or --overwrite" in refused(*args, "--resume", "--seed", 1)
    run(*args, "--resume")
    assert names(out) == FILES


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--machine", "IS"], "--machine: IS has no locality scale"),
        (["--scales", "3"], "--scales: there is nothing to choose from [3]"),
        (["--scales", "3,33"], "locality scale: k = 33 is larger than the images"),
        (["-n", 0], "'-n': 0 is not in the range x>=1"),
        (["-n", 40], "-n: is 40, but there are 39 images"),
        (["--estimator", "auto"], "--estimator: auto needs a store with an index"),
        (["--label", "shoe"], "--label: the images have no label called 'shoe'"),
        (["--label", 77], "--label: no image has label 77"),
        (["--beside", "best"], "unknown preset 'best'"),
        (["--network", "nowhere"], "nowhere"),
        (["--held-out", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(source, tmp_path, args, message):
    assert message in refused("calibrate", source, "-o", tmp_path / "out", "--machine", "ELS", *args)
    assert not (tmp_path / "out").exists()


def test_image_options_are_fixed_in_a_store(store, tmp_path):
    message = refused("calibrate", store, "-o", tmp_path / "out", "--resize", 16)
    assert "--resize: is fixed in the store" in message


def test_a_second_process_that_calibrates_into_the_same_folder_is_refused(source, tmp_path):
    out = tmp_path / "scales"
    args = ("calibrate", source, "-o", out, "-n", 1, *SMALL)
    with hold_folder(out):
        for more in ((), ("--resume",), ("--overwrite",)):
            assert "another process writes to this folder; wait until it ends" in refused(*args, *more)
    assert not out.exists()
