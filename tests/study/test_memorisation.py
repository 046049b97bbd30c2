"""Memorisation by locality scale and noise."""

import csv

import numpy as np
import pytest

import patchindex as pi
from patchindex.errors import InputError
from patchindex.study.memorisation import memorisation


@pytest.fixture(scope="module")
def found(real_images):
    return memorisation(real_images(80, 14)[0], (3, 13), (0.05, 0.4, 0.9), n=4, pixels=24)


def cell(study, k, t):
    return next(row for row in study.rows if (row["k"], row["t"]) == (k, t))


def test_large_patches_at_low_noise_memorise(found):
    large, small = cell(found, 13, 0.05), cell(found, 3, 0.9)
    assert large["single"] > 0.9
    assert large["ess"] < 1.2
    assert large["rmse_training"] < 0.01  # the image itself is the nearest
    assert large["ratio"] < 0.1
    assert small["single"] < 0.1
    assert small["ratio"] > 0.8
    assert found.best()[0.05] == 3


def test_errors_are_those_of_the_machine(real_images):
    images = real_images(30, 14)[0]
    study = memorisation(images, (5,), (0.3,), machine="LS", n=1, pixels=10_000)
    machine = pi.ScoreMachine(images[1:], machine="LS", locality=5)
    from patchindex.sampling import draw_noise
    from patchindex.study.contributions import some_pixels
    from patchindex.study.originality import read_images

    clean = read_images(images[[0]], (1, 14, 14))
    beta = machine.noise(0.3)
    mean = machine.posterior_mean((1 - beta) ** 0.5 * clean + beta**0.5 * draw_noise(0, 1, (1, 14, 14)), 0.3)
    pixels = some_pixels(clean, 10_000)[0]
    off = (mean.mean - clean).flatten()[pixels]
    assert study.rows[0]["rmse_held_out"] == pytest.approx(float(off.square().mean().sqrt()), rel=1e-4)


def test_copies_of_held_out_images_are_held_out(real_images):
    images = real_images(20, 14)[0]
    settings = {"scales": (9,), "times": (0.05,), "machine": "LS", "n": 2, "pixels": 20}
    (row,) = memorisation(np.concatenate([images, images[:19]]), **settings).rows  # both held-out images
    assert row["rmse_held_out"] > 0.05
    assert row["ratio"] < 0.2


def test_files_and_the_figure_hold_every_cell(found, tmp_path):
    found.to_csv(tmp_path / "m.csv")
    found.to_json(tmp_path / "m.json")
    with (tmp_path / "m.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    found.plot().savefig(tmp_path / "m.png")
    assert (tmp_path / "m.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("scales", "times", "message"),
    [
        ((3,), (0.1, 1.5), r"times: must lie in \(0, 1\), got 1\.5"),
        ((3, 4), (0.1,), "locality scale: k must be odd"),
        ((3, 15), (0.1,), "locality scale: k = 15 is larger than the images"),
    ],
)
def test_times_and_scales_are_checked_before_any_work(real_images, scales, times, message):
    images, done = real_images(10, 14)[0], []
    with pytest.raises(InputError, match=message):
        memorisation(images, scales, times, machine="ELS", n=2, progress=lambda *step: done.append(step))
    assert done == []


def test_bad_input_is_refused(real_images):
    images = real_images(10, 14)[0]
    with pytest.raises(InputError, match=r"n: leaves 5 of 10 images that are not copies of held-out images"):
        memorisation(images, n=5)
    with pytest.raises(InputError, match=r"times: must lie in \(0, 1\), got 0"):
        memorisation(images, (3,), (0.0,), n=2)
    with pytest.raises(InputError, match="all neighbourhoods are flat"):
        memorisation(np.arange(10, dtype=np.uint8).repeat(14 * 14).reshape(10, 14, 14), (3,), (0.5,), n=2)
