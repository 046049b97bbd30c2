"""`patchindex originality`: files, tables, and what it refuses."""

import json

import numpy as np
import pytest
from commands import refused, run


@pytest.fixture(scope="module")
def samples(fashion, tmp_path_factory):
    """A copy of training image 7, and two images that are not in the store."""
    images = fashion[0][[7, 500, 501]] / 127.5 - 1
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    np.savez(path, images=images.reshape(3, 1, 28, 28).astype(np.float32))
    return path


def test_originality_writes_and_prints_its_results(samples, store, tmp_path):
    out = tmp_path / "out"
    args = ("originality", samples, store, "-o", out, "--shift", 1, "--baseline", 4)
    found = json.loads(run(*args, "--times", "0.05,0.5", "--pixels", 8, "--json").stdout)
    assert found["summary"]["images"] == 3
    assert found["summary"]["copies"] == 1
    assert [row["t"] for row in found["summary"]["steps"]] == [0.05, 0.5]
    assert sorted(str(file) for file in out.iterdir()) == sorted(found["files"])
    rows = json.loads((out / "originality.json").read_text())["rows"]
    assert rows[0]["nearest"] == pytest.approx(0, abs=1e-7)  # samples are rounded to float32
    assert rows[0]["nearest_image"] == 7
    assert "already has originality.csv" in refused(*args)
    printed = run(*args, "--times", "", "--overwrite", "-n", 1).stdout
    assert "held out" in printed
    assert "1 image is a copy" in printed
    assert "ESS" not in printed


def test_memorisation_has_the_scales_of_the_store(samples, store, tmp_path):
    args = ("originality", samples, store, "-o", tmp_path, "--shift", 0, "--baseline", 2, "--times", "")
    run(*args, "--memorisation")
    rows = json.loads((tmp_path / "memorisation.json").read_text())["rows"]
    assert {row["k"] for row in rows} == {3, 5, 7}
    assert (tmp_path / "memorisation.png").is_file()


def test_a_store_without_a_schedule_takes_the_preset_that_sample_takes(samples, store, fashion, tmp_path):
    np.savez(tmp_path / "images.npz", images=fashion[0][:40])
    run("build", tmp_path / "images.npz", "-o", tmp_path / "s.zarr", "--scales", 5, "--no-tune")
    args = ("originality", samples, tmp_path / "s.zarr", "-o", tmp_path, "--shift", 0, "--baseline", 2)
    done = run(*args, "--times", "0.5", "--pixels", 4, "--memorisation")
    assert "no --locality: taking fashion-mnist-resnet-zeros for images of 28 x 28 (scales 5)" in done.stderr
    rows = json.loads((tmp_path / "memorisation.json").read_text())["rows"]
    assert {row["k"] for row in rows} == {5}
    assert {row["k"] for row in json.loads((tmp_path / "originality.json").read_text())["steps"]} == {5}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--times", "0.5,late"], "--times: '0.5,late' is not a list of times"),
        (["--times", "1.5"], "--times: must lie in (0, 1), got 1.5"),
        (["--shift", -1], "'--shift': -1 is not in the range x>=0"),
        (["--locality", "best"], "--locality: unknown preset 'best'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(samples, store, tmp_path, args, message):
    assert message in refused("originality", samples, store, "-o", tmp_path / "out", *args)
    assert not (tmp_path / "out").exists()


def test_samples_of_another_size_are_refused(store, tmp_path):
    np.savez(tmp_path / "s.npz", images=np.zeros((2, 1, 16, 16), np.float32))
    assert "SAMPLES: are of shape (1, 16, 16)" in refused(
        "originality", tmp_path / "s.npz", store, "-o", tmp_path / "out"
    )
    assert "no such file" in refused("originality", tmp_path / "no.npz", store, "-o", tmp_path / "out")
