"""Originality of images: files, columns, and what it refuses."""

import csv
import json

import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError
from patchindex.study.originality import originality, read_images


@pytest.fixture(scope="module")
def training(real_images):
    return real_images(60, 14)[0]


@pytest.fixture(scope="module")
def new(real_images):
    return real_images(4, 14, skip=500)[0]


@pytest.fixture(scope="module")
def found(training, new):
    machine = pi.ScoreMachine(training, locality=[3, 3, 5, 7])
    images = np.concatenate([training[7:8], np.roll(training[9:10], (1, -2), (1, 2)), new])
    return originality(images, training, machine, times=(0.05, 0.5), pixels=16, baseline=20)


def test_copies_are_at_distance_zero(found):
    copy, moved, *others = found.rows
    assert (copy["nearest"], copy["nearest_image"], copy["copy"]) == (0, 7, True)
    assert (moved["shifted"], moved["shifted_image"], moved["shift_y"], moved["shift_x"]) == (0, 9, 1, -2)
    assert not moved["copy"]
    assert all(0 < row["shifted"] <= row["nearest"] < row["second"] for row in others)


def test_distances_are_relative_to_the_baseline(found, training):
    nearest = np.median([row["nearest"] for row in found.baseline])
    assert len(found.baseline) == 20
    for row in found.rows:
        assert row["relative_nearest"] == pytest.approx(row["nearest"] / nearest)
    unit = training.astype(np.float64) / 127.5 - 1
    left_out = found.baseline[0]
    off = np.sqrt(((unit - unit[left_out["image"]]) ** 2).mean((1, 2, 3)))
    assert left_out["nearest"] == pytest.approx(np.sort(off)[1], rel=1e-6)


def test_a_copy_draws_from_fewer_images_than_a_new_image(found):
    at = {(row["image"], row["t"]): row for row in found.steps}
    assert len(at) == 6 * 2
    assert at[0, 0.05]["heaviest_image"] == 7
    assert at[0, 0.05]["heaviest"] > max(at[i, 0.05]["heaviest"] for i in range(2, 6))
    assert at[0, 0.05]["images"] < np.mean([at[i, 0.05]["images"] for i in range(2, 6)])
    for row in found.steps:
        assert 1 <= row["images_per_pixel"] <= row["images"] * 1.001 <= 60.1


def test_numbers_are_those_of_the_source_also_in_a_store(real_images, tmp_path):
    images, labels = real_images(30, 14)
    store = pi.build_index(images, tmp_path / "s.zarr", scales=(3,), labels=labels, lists=20)
    rows = originality(images[[4, 21]], store, baseline=2).rows
    assert [row["nearest_image"] for row in rows] == [4, 21]
    unit = images / 127.5 - 1
    for row in originality(images[:1], store, baseline=5, shift=0).baseline:
        off = np.sqrt(((unit - unit[row["image"]]) ** 2).mean((1, 2, 3)))
        off[row["image"]] = np.inf
        assert row["nearest"] == pytest.approx(off.min(), rel=1e-6)
        assert row["nearest_image"] == off.argmin()


def test_files_hold_the_tables(found, tmp_path):
    found.to_csv(tmp_path / "o.csv")
    found.to_json(tmp_path / "o.json")
    with (tmp_path / "o.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 6
    assert float(table[0]["images_t0.05"]) == found.steps[0]["images"]
    kept = json.loads((tmp_path / "o.json").read_text())
    assert kept["summary"]["copies"] == 1
    assert [row["t"] for row in kept["summary"]["steps"]] == [0.05, 0.5]
    for number, figure in enumerate((found.plot(), found.plot_images())):
        figure.savefig(tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 5000


def test_flat_images_have_distances_but_no_sources(training):
    machine = pi.ScoreMachine(training, locality=3)
    flat = originality(torch.full((1, 1, 14, 14), -1.0), training, machine, times=(0.1,), baseline=3)
    assert flat.rows[0]["nearest"] > 0
    assert flat.steps[0]["images"] is None
    assert flat.summary()["steps"][0]["images"] is None
    flat.plot()


def test_samples_are_read_as_they_were_written(tmp_path):
    drawn = torch.rand(3, 1, 14, 14) * 2 - 1
    np.savez(tmp_path / "samples.npz", images=drawn.numpy())
    assert torch.equal(read_images(tmp_path / "samples.npz", (1, 14, 14)), drawn)
    for same in (drawn.numpy().astype(">f4"), drawn.numpy()[:, :, ::-1].copy()[:, :, ::-1]):
        assert torch.equal(read_images(same, (1, 14, 14)), drawn)
    levels = np.full((2, 14, 14), 255, np.uint8)
    assert torch.equal(read_images(levels, (1, 14, 14)), torch.ones(2, 1, 14, 14))


@pytest.mark.parametrize("machine", ["LS", None])
def test_times_and_scales_are_checked_before_any_work(training, new, machine):
    done = []

    def refused(times, **settings):
        made = machine and pi.ScoreMachine(training, machine=machine, **settings)
        with pytest.raises(InputError) as caught:
            originality(new, training, made, times=times, progress=lambda *step: done.append(step))
        return str(caught.value)

    for wrong in (1.5, 0, float("nan"), "0.1"):
        assert refused((0.1, wrong), locality=3).startswith(f"times: must lie in (0, 1), got {wrong!r}")
    if machine is not None:
        assert "locality: there is none" in refused((0.1,))
    assert done == []


def test_what_does_not_fit_is_refused(training, new):
    with pytest.raises(
        InputError, match=r"images: are of shape \(1, 12, 12\), the training images of \(1, 14, 14\)"
    ):
        originality(new[:, :12, :12], training)
    with pytest.raises(InputError, match="images: must be finite and about"):
        originality(torch.full((1, 1, 14, 14), 9.0), training)
    with pytest.raises(InputError, match="dtype <U5 is not uint8 or float"):
        originality(np.full((1, 1, 14, 14), "words"), training)
    with pytest.raises(InputError, match="images: holds no images; give at least one"):
        originality(np.zeros((0, 1, 14, 14), np.float32), training)
    with pytest.raises(InputError, match="machine: has other images than the source"):
        originality(new, training, pi.ScoreMachine(training[:30], locality=3))
    with pytest.raises(InputError, match="machine: has other images than the source"):
        originality(new, training, pi.ScoreMachine(255 - training, locality=3))
    with pytest.raises(InputError, match="source: holds one image"):
        originality(new, training[:1])
    with pytest.raises(InputError, match="shift: must be at least 0"):
        originality(new, training, shift=-1)
    with pytest.raises(InputError, match=r"times: must lie in \(0, 1\), got 1"):
        originality(new, training, pi.ScoreMachine(training, locality=3), times=(1.0,))
