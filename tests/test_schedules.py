"""Noise and locality schedules are the published ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from patchindex.errors import InputError
from patchindex.schedules import (
    LOCALITY_PRESETS,
    LocalitySchedule,
    cosine,
    noise_levels,
    noise_schedule,
)

# The table of the design, which is the one of the paper's code: typed again, as text.
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
PUBLISHED = {line.split()[0]: tuple(map(int, line.split()[1:])) for line in TABLE.split("\n") if line}


def test_there_are_no_other_presets():
    assert set(LOCALITY_PRESETS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_scales(name):
    schedule = LocalitySchedule.of(name)
    assert schedule.name == name
    assert schedule.scales == PUBLISHED[name]
    assert schedule.distinct == tuple(sorted(set(PUBLISHED[name])))
    # The sampler's twenty times fall on the entries 1 to 19.
    assert [schedule.k(i / 20) for i in range(1, 20)] == list(PUBLISHED[name][1:])


def test_k_is_the_nearest_entry_and_never_the_first():
    schedule = LocalitySchedule("custom", tuple(range(1, 41, 2)))
    for t in np.linspace(0.001, 0.999, 333):
        assert schedule.k(t) == 1 + 2 * int(np.clip(round(20 * t), 1, 19))
    assert schedule.k(1e-9) == 3
    assert schedule.k(1 - 1e-9) == 39


def test_k_of_schedules_of_other_lengths():
    four = LocalitySchedule.of([9, 3, 5, 7])
    assert [four.k(t) for t in (0.01, 0.25, 0.49, 0.74, 0.76, 0.99)] == [3, 3, 5, 7, 7, 7]
    assert four.distinct == (3, 5, 7)  # not the unused first entry
    one = LocalitySchedule.of(5)
    assert [one.k(t) for t in (0.01, 0.5, 0.99)] == [5, 5, 5]
    assert one.distinct == (5,)


def test_of_returns_a_schedule_as_it_is():
    schedule = LocalitySchedule.of([3, 5])
    assert LocalitySchedule.of(schedule) is schedule
    assert schedule.name == "custom"
    assert LocalitySchedule.of(np.array([3, 5])).scales == (3, 5)
    assert all(type(k) is int for k in LocalitySchedule.of(np.array([3, 5])).scales)


def test_nearest_takes_the_smaller_scale_in_a_tie():
    schedule = LocalitySchedule.of([3, 5, 7, 9, 15])
    assert schedule.nearest([3, 7]).scales == (3, 3, 7, 7, 7)
    assert schedule.nearest([7, 3]).scales == (3, 3, 7, 7, 7)
    assert schedule.nearest([3, 7]).name == "custom/nearest-3-7"
    assert schedule.nearest([15, 9, 7, 5, 3, 1]) is schedule
    assert LocalitySchedule.of("mnist-unet-zeros").nearest([3, 27]).name == "mnist-unet-zeros/nearest-3-27"


@pytest.mark.parametrize(
    ("locality", "words"),
    [
        ("cifar10", "unknown preset 'cifar10'; use one of .*cifar10-unet-zeros"),
        ([], "the schedule is empty"),
        ([3, 4], "k must be odd .* got 4"),
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


def test_cosine_has_the_values_of_the_paper():
    # beta at the four times of the shared golden file, as stored there.
    golden = {0.05: 0.0060587, 0.3: 0.20308991, 0.6: 0.64737759, 0.95: 0.99185311}
    for t, beta in golden.items():
        assert cosine(t) == pytest.approx(beta, abs=1e-8)
    assert cosine(0) == 0
    assert cosine(0.504) == pytest.approx(0.5, abs=1e-15)  # half of 1.008
    # The 1.008 keeps some signal at t = 1.
    assert 1 - cosine(1) == pytest.approx(math.sin(math.pi * 0.008 / 2.016) ** 2, rel=1e-9)
    values = [cosine(t) for t in np.linspace(0, 1, 101)]
    assert values == sorted(values)
    assert values[-1] < 1


def test_noise_schedule_by_name_or_as_a_function():
    assert noise_schedule("cosine") is cosine

    def linear(t):
        return t

    assert noise_schedule(linear) is linear
    with pytest.raises(InputError, match="unknown noise schedule 'sine'; use cosine"):
        noise_schedule("sine")


def test_the_times_of_a_scale_are_those_at_which_it_is_used():
    for scales in ([3, 5], [3, 3, 5, 7], [5, 3, 5, 3], *LOCALITY_PRESETS.values()):
        schedule = LocalitySchedule.of(scales)
        for k in set(scales):
            times = schedule.times(k)
            assert bool(times) == (k in schedule.distinct)
            assert times == sorted(set(times))
            assert all(schedule.k(t) == k for t in times)
            assert {i / 20 for i in range(1, 20) if schedule.k(i / 20) == k} <= set(times)


def test_noise_levels_are_those_of_the_schedule_or_of_all_presets():
    assert noise_levels(5, LocalitySchedule.of([3, 5])) == [cosine(i / 20) for i in range(1, 20)]
    assert noise_levels(27) == [cosine(0.95)]
    assert noise_levels(99) == [cosine(i / 20) for i in range(1, 20)]
