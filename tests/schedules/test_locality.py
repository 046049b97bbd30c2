"""Locality schedules: published presets, looked up by the noise variance."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from patchindex.errors import InputError, PatchIndexWarning
from patchindex.schedules import (
    LOCALITY_PRESETS,
    NOISE_SCHEDULES,
    LocalitySchedule,
    Provenance,
    cosine,
    linear,
    noise_levels,
)

# The table of the paper's code, typed again, as text.
TABLE = """
cifar10-resnet-circular      3 3 3 3 5 5 5 5 7 7 7 9 9 11 11 13 13 15 15 15
cifar10-resnet-zeros         3 3 3 3 5 5 5 7 7 7 7 9 9 11 11 13 15 17 17 17
cifar10-unet-zeros           3 3 3 3 5 5 5 5 7 7 7 7 9 9 11 13 13 15 17 25
celeba-resnet-zeros          3 3 3 5 5 5 5 5 7 7 9 9 9 11 11 11 13 15 19 19
celeba-unet-zeros            3 3 3 3 3 3 3 5 5 5 5 5 7 7 9 9 9 13 19 27
fashion-mnist-resnet-zeros   3 3 5 5 7 7 9 9 9 11 11 11 13 13 13 15 15 15 17 17
fashion-mnist-unet-zeros     3 3 5 5 7 7 7 9 11 11 11 13 15 15 21 23 25 25 25 25
mnist-resnet-circular        3 3 5 5 5 7 7 9 9 9 11 11 11 11 9 9 7 7 3 3
mnist-resnet-zeros           3 3 5 5 5 7 7 7 9 9 11 11 11 11 13 15 15 15 15 15
mnist-unet-zeros             3 3 3 5 5 7 7 7 9 9 9 11 13 15 17 21 23 23 25 27
"""
SCHEDULE = Path(__file__).parents[2] / "data" / "fashion_resnet" / "schedule.json"
PUBLISHED = {line.split()[0]: tuple(map(int, line.split()[1:])) for line in TABLE.split("\n") if line}


def by_time(scales, t):
    """Return the scale at time t as the paper's code does, with any number of steps."""
    n = len(scales)
    return scales[int(np.clip(round(n * t), 1, n - 1))] if n > 1 else scales[0]


def test_all_other_presets_were_calibrated_in_this_repository():
    (name,) = set(LOCALITY_PRESETS) - set(PUBLISHED)
    preset, calibrated = LocalitySchedule.of(name), LocalitySchedule.load(SCHEDULE)
    assert preset.name == name == "fashion-mnist-28-small-resnet"
    assert preset.scales == calibrated.scales
    np.testing.assert_allclose(*([beta for beta, _ in each.pairs] for each in (preset, calibrated)))
    assert preset.provenance.image_size == calibrated.provenance.image_size == (28, 28)
    assert preset.provenance.noise == calibrated.provenance.noise


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_scales(name):
    schedule = LocalitySchedule.of(name)
    assert schedule.name == name
    assert schedule.scales == PUBLISHED[name][1:]
    assert schedule.distinct == tuple(sorted(set(PUBLISHED[name])))
    assert [beta for beta, _ in schedule.pairs] == [cosine(i / 20) for i in range(1, 20)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_with_the_cosine_schedule_a_preset_has_the_published_scale_at_every_time(name):
    schedule = LocalitySchedule.of(name)
    # Times on the grid of 20, 40, 100 steps and between; those halfway between two entries are among them.
    for t in [*(i / 8000 for i in range(1, 8000)), 1e-9, 1 - 1e-9]:
        assert schedule.k(cosine(t)) == by_time(PUBLISHED[name], t), t


@pytest.mark.parametrize("scales", [[9, 3, 5, 7], [3, 5], list(range(1, 41, 2)), list(range(3, 65, 2))])
@pytest.mark.parametrize("noise", NOISE_SCHEDULES)
def test_the_entries_of_a_list_hold_at_the_times_of_the_noise_schedule(scales, noise):
    schedule, n = LocalitySchedule.of(scales, noise), len(scales)
    for i in range(1, n):
        assert schedule.k(NOISE_SCHEDULES[noise](i / n)) == scales[i]
    if noise == "cosine":
        for t in np.linspace(0.001, 0.999, 333):
            assert schedule.k(cosine(t)) == by_time(scales, t)
    assert schedule.distinct == tuple(sorted(scales[1:]))  # not the unused first entry


def test_the_noise_decides_and_not_the_time():
    schedule = LocalitySchedule.of("cifar10-resnet-circular")
    # DDPM has beta = .921 at t = .5, where the cosine schedule is at t = .826.
    assert linear(0.5) == pytest.approx(0.9214, abs=1e-4)
    assert schedule.k(linear(0.5)) == 15
    assert schedule.k(cosine(0.5)) == 7
    for t in np.linspace(0.001, 0.999, 99):
        same = math.asin(math.sqrt(linear(t))) / (math.pi / 2) * 1.008
        assert schedule.k(linear(t)) == schedule.k(cosine(same))


def test_k_is_the_scale_of_the_pair_with_the_nearest_angle():
    rng = np.random.default_rng(0)
    betas = np.sort(rng.uniform(0, 1, 30))
    schedule = LocalitySchedule("mine", tuple((beta, 2 * i + 1) for i, beta in enumerate(betas)))
    angles = np.arcsin(np.sqrt(betas))
    for beta in rng.uniform(0, 1, 500):
        nearest = np.abs(angles - np.arcsin(np.sqrt(beta))).argmin()
        assert schedule.k(beta) == 2 * nearest + 1
    assert (schedule.k(0), schedule.k(1)) == (1, 59)
    with pytest.raises(InputError, match=r"beta: must lie in \[0, 1\], got 1.5"):
        schedule.k(1.5)


def test_one_scale_holds_for_all_noise():
    for one in (5, [5], np.int64(5)):
        schedule = LocalitySchedule.of(one, lambda t: 0.5)
        assert {schedule.k(beta) for beta in (0, 1e-9, 0.5, 1)} == {5}
        assert schedule.distinct == (5,)


def test_of_returns_a_schedule_as_it_is():
    schedule = LocalitySchedule.of([3, 5])
    assert LocalitySchedule.of(schedule) is schedule
    assert schedule.name == "custom"
    assert LocalitySchedule.of(np.array([3, 5, 7])) == LocalitySchedule.of([3, 5, 7])
    assert all(type(k) is int for k in LocalitySchedule.of(np.array([3, 5])).scales)


def test_nearest_takes_the_smaller_scale_in_a_tie():
    schedule = LocalitySchedule.of([3, 3, 5, 7, 9, 15])
    assert schedule.nearest([3, 7]).scales == (3, 3, 7, 7, 7)
    assert schedule.nearest([7, 3]).scales == (3, 3, 7, 7, 7)
    assert schedule.nearest([3, 7]).name == "custom/nearest-3-7"
    assert schedule.nearest([15, 9, 7, 5, 3, 1]) is schedule
    with pytest.raises(InputError, match="scales: there are none; give at least one scale"):
        schedule.nearest([])
    moved = LocalitySchedule.of("mnist-unet-zeros").nearest([3, 27])
    assert moved.name == "mnist-unet-zeros/nearest-3-27"
    assert moved.provenance == LocalitySchedule.of("mnist-unet-zeros").provenance


@pytest.mark.parametrize(
    ("locality", "words"),
    [
        ("cifar10", "unknown preset 'cifar10'; use one of .*cifar10-unet-zeros, .*, or a .json file"),
        ([], "the schedule is empty"),
        ([3, 4], "k must be odd .* got 4"),
        ([4, 3], "k must be odd .* got 4"),
        ([3, -1], "k must be odd .* got -1"),
        ([3, 0], "k must be odd .* got 0"),
        ([3, 5.5], "k must be odd .* got 5.5"),
        ([3, True], "k must be odd .* got True"),
        ([3, "a"], "k must be odd .* got 'a'"),
        (6, "k must be odd .* got 6"),
    ],
)
def test_bad_schedules_are_refused(locality, words):
    with pytest.raises(InputError, match=f"locality: {words}"):
        LocalitySchedule.of(locality)


def test_a_list_needs_a_noise_schedule_that_ascends():
    with pytest.raises(
        InputError, match=r"locality: beta must increase from pair to pair, got 0.5 after 0.5"
    ):
        LocalitySchedule.of([3, 3, 5], lambda t: 0.5)


def test_a_preset_knows_its_network_and_the_size_of_its_images():
    assert LocalitySchedule.of([3, 5]).provenance is None
    for name in PUBLISHED:
        origin = LocalitySchedule.of(name).provenance
        assert (origin.image_size, origin.noise) == ((32, 32), "cosine")
        assert ("class-conditional" in origin.network) == (origin.data in ("CIFAR-10", "Fashion-MNIST"))
        assert origin.network.split()[0].lower() in name
        assert origin.data.lower().replace("-1", "1").startswith(name.split("-")[0])


def test_images_of_another_size_warn():
    schedule = LocalitySchedule.of("fashion-mnist-resnet-zeros")
    with pytest.warns(PatchIndexWarning) as caught:
        schedule.check_image_size((28, 28))
    assert str(caught[0].message) == (
        "locality schedule 'fashion-mnist-resnet-zeros': was calibrated on images of 32 x 32, "
        "not 28 x 28; scale it with LocalitySchedule.resized"
    )
    assert caught[0].filename == __file__
    with pytest.warns(PatchIndexWarning, match="nearest-3-7"):
        schedule.nearest([3, 7]).check_image_size((28, 28))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.check_image_size((32, 32))
        schedule.resized(28).check_image_size((28, 28))
        LocalitySchedule.of([3, 5]).check_image_size((28, 28))


@pytest.mark.parametrize("size", [8, 16, 20, 28, 31, 48, 64, 100, 128])
def test_resized_scales_are_the_nearest_odd_numbers(size):
    schedule = LocalitySchedule(
        "all", tuple((k / 64, k) for k in range(1, 33, 2)), Provenance("", "", (32, 32))
    )
    found = schedule.resized(size)
    odd = np.arange(1, 2 * size, 2)
    assert found.scales == tuple(odd[np.abs(odd - k * size / 32).argmin()] for k in schedule.scales)
    assert max(found.scales) <= size
    assert [beta for beta, _ in found.pairs] == [beta for beta, _ in schedule.pairs]
    assert found.provenance.image_size == (size, size)


def test_resized_says_so_in_its_name_and_provenance():
    schedule = LocalitySchedule.of("fashion-mnist-resnet-zeros")
    found = schedule.resized((28, 28))
    assert found == schedule.resized(28)
    assert found.name == "fashion-mnist-resnet-zeros/resized-28-28"
    assert found.provenance.method.endswith("scaled from 32 x 32 to 28 x 28 images")
    assert schedule.resized(32) is schedule
    assert schedule.resized((16, 64)).scales == schedule.scales  # the same area
    with pytest.raises(
        InputError, match=r"locality schedule 'custom': the size of the images .* unknown; leave out resized"
    ):
        LocalitySchedule.of([3, 5]).resized(28)
    assert schedule.resized(np.int64(28)) == found
    for size in (2.5, True, (28, 0), (28, 28, 3)):
        with pytest.raises(InputError, match="size: must be"):
            schedule.resized(size)


def test_the_noise_levels_of_a_scale_are_those_at_which_it_is_used():
    for scales in ([3, 5], [3, 3, 5, 7], [5, 3, 5, 3], *LOCALITY_PRESETS.values()):
        schedule = LocalitySchedule.of(scales)
        for k in set(scales):
            betas = schedule.betas(k)
            assert bool(betas) == (k in schedule.distinct)
            assert betas == sorted(set(betas))
            assert all(schedule.k(beta) == k for beta in betas)
            assert {cosine(i / 20) for i in range(1, 20) if by_time(scales, i / 20) == k} <= set(betas)


def test_noise_levels_are_those_of_the_schedule_or_of_all_presets():
    assert noise_levels(5, LocalitySchedule.of([3, 5])) == [cosine(i / 20) for i in range(1, 20)]
    assert noise_levels(5, LocalitySchedule.of(5)) == [cosine(i / 20) for i in range(1, 20)]
    assert noise_levels(27) == [cosine(0.95)]
    assert noise_levels(99) == [cosine(i / 20) for i in range(1, 20)]
