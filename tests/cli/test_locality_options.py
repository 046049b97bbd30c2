"""Locality schedules on the command line: presets for images of another size, and files."""

import json

import numpy as np
import pytest
from commands import DATA, refused, run

from patchindex import LocalitySchedule, Provenance

WARNING = (
    "Warning: locality schedule 'fashion-mnist-resnet-zeros': was calibrated on images of 32 x 32, "
    "not 28 x 28; scale it with --resize-locality\n"
)


@pytest.fixture(scope="module")
def preset_store(fashion, tmp_path_factory):
    """A store of five images of 28 x 28 with a preset; LS has no index, so the build takes no time."""
    folder = tmp_path_factory.mktemp("preset")
    np.savez(folder / "five.npz", images=fashion[0][:5])
    build = ("build", folder / "five.npz", "-o", folder / "s.zarr", "--machine", "LS")
    result = run(*build, "--locality", "fashion-mnist-resnet-zeros")
    assert result.stderr.count("Warning") == 1
    assert WARNING in result.stderr
    return folder / "s.zarr"


def drawn(folder, *options):
    """Draw an image; return the schedule in its record, the scales of its steps, and stderr."""
    result = run("sample", *options, "-n", 1, "-o", folder, "--overwrite")
    record = json.loads((folder / "samples.json").read_text())
    return record["settings"]["locality"], [step["k"] for step in record["steps"]], result.stderr


def test_the_schedule_of_a_store_warns_until_it_is_resized(preset_store, tmp_path):
    locality, scales, said = drawn(tmp_path, preset_store)
    assert said == WARNING
    assert (locality["name"], scales[0]) == ("fashion-mnist-resnet-zeros", 17)
    locality, scales, said = drawn(tmp_path, preset_store, "--resize-locality")
    assert said == ""
    assert (locality["name"], scales[0]) == ("fashion-mnist-resnet-zeros/resized-28-28", 15)
    assert locality["provenance"]["image_size"] == [28, 28]


def test_a_resized_schedule_is_rounded_once_before_it_is_moved(store, tmp_path):
    preset = ("--locality", "celeba-unet-zeros", "--resize-locality", "--nearest-scales")
    locality, scales, said = drawn(tmp_path, store, *preset)
    assert said == ""
    assert locality["name"] == "celeba-unet-zeros/resized-28-28/nearest-3-5-7"
    assert scales == [7, 7, 7, 7, 7, 7, 7, 7, 5, 5, 5, 5, 5, 3, 3, 3, 3, 3, 3]


def test_info_prints_the_schedule_and_its_provenance(preset_store, store):
    said = run("info", preset_store).stdout
    assert "locality    fashion-mnist-resnet-zeros: k = 3, 5, 5, 7, 7, 9, 9, 9, 11, 11, 11" in said
    assert (
        "calibrated  ResNet with zero padding, class-conditional; Fashion-MNIST; 32 x 32; cosine noise"
        in said
    )
    said = run("info", store).stdout
    assert "locality    custom: k = 3, 5, 7 from beta = 0.144 to 0.847\n" in said
    assert "calibrated" not in said
    found = json.loads(run("info", store, "--json").stdout)["locality"]
    assert [k for _, k in found["pairs"]] == [3, 5, 7]


def test_a_schedule_is_read_from_a_file(store, tmp_path):
    path = tmp_path / "k.json"
    schedule = LocalitySchedule("mine", ((0.3, 3), (0.7, 7)), Provenance("a network", image_size=(28, 28)))
    schedule.save(path)
    locality, scales, said = drawn(tmp_path / "out", store, "--locality", path)
    assert said == ""
    assert locality == schedule.as_dict()
    assert scales == [7] * 9 + [3] * 10
    run("build", "--machine", "LS", DATA, "--limit", 3, "-o", tmp_path / "s.zarr",
        "--locality", path)  # fmt: skip
    assert json.loads(run("info", tmp_path / "s.zarr", "--json").stdout)["locality"] == schedule.as_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--locality", "none.json"], "none.json: no such file"),
        (["--locality", "BAD.json"], "BAD.json: k must be odd and at least 1, got 4 in pair 1; give a file"),
        (["--locality", "3,3,5", "--resize-locality"], "is unknown; leave out --resize-locality"),
        (["--resize-locality"], "schedule 'custom': the size of the images that"),
    ],
)
def test_bad_schedules_are_one_line(store, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BAD.json").write_text('{"version": 1, "name": "bad", "pairs": [[0.5, 4]]}')
    assert message in refused("sample", store, "-n", 1, "-o", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_resizing_needs_a_schedule(source, tmp_path):
    build = ("build", source, "-o", tmp_path / "s.zarr", "--scales", "3", "--resize-locality")
    assert "--resize-locality: there is no schedule; give --locality" in refused(*build)
