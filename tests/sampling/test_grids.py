"""Time grids: they descend to the data, at the spacing that their name says."""

import numpy as np
import pytest

from patchindex.errors import InputError
from patchindex.networks import NoiseTable
from patchindex.sampling import SPACINGS, time_grid
from patchindex.schedules import NOISE_SCHEDULES, cosine


def sigmas(times, noise):
    betas = np.array([noise(t) for t in times])
    return np.sqrt(betas / (1 - betas))


@pytest.mark.parametrize("noise", NOISE_SCHEDULES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [2, 3, 20])
def test_a_grid_descends_from_noise_to_data(noise, spacing, steps):
    times = time_grid(steps, NOISE_SCHEDULES[noise], spacing)
    assert len(times) == steps
    assert times[0] < 1
    assert times[-1] == 0
    assert (np.diff(times) < 0).all()


@pytest.mark.parametrize("noise", NOISE_SCHEDULES.values())
def test_spacings_of_sigma(noise):
    high, low = sigmas([0.999, 0.001], noise)
    karras = sigmas(time_grid(12, noise, "karras")[:-1], noise)
    # As get_sigmas_karras of k-diffusion, with rho = 7.
    ramp = np.linspace(0, 1, 11)
    expected = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    np.testing.assert_allclose(karras, expected, rtol=1e-9)
    log_snr = np.log(sigmas(time_grid(12, noise, "log-snr")[:-1], noise))
    np.testing.assert_allclose(np.diff(log_snr), (np.log(low) - np.log(high)) / 10, rtol=1e-8)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("noise", [NoiseTable(np.linspace(0.05, 0.95, 6)), lambda t: 0.5])
def test_a_grid_descends_for_fewer_noise_levels_than_steps(noise, spacing):
    times = time_grid(20, noise, spacing)
    assert (np.diff(times) < 0).all()
    assert times[-1] == 0
    assert {noise(t) for t in times[:-1]} == {noise(t) for t in np.linspace(0.05, 0.95, 19)}


@pytest.mark.parametrize("spacing", ["karras", "log-snr"])
@pytest.mark.parametrize(
    ("noise", "end"), [(lambda t: min(1.0, t / 0.998), 0.999), (lambda t: 0.5 * (t > 0.5), 0.001)]
)
def test_a_schedule_without_a_sigma_at_an_end_is_refused(noise, end, spacing):
    with pytest.raises(
        InputError, match=f"noise: gives beta = .* at t = {end}, an end of the grid; give beta"
    ):
        time_grid(5, noise, spacing)


def test_times_may_be_given():
    assert time_grid([0.9, 0.5, 0], cosine) == [0.9, 0.5, 0.0]
    assert time_grid((0.9, 0.5), cosine, "karras") == [0.9, 0.5]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (1, "must be at least 2, got 1"),
        (10**12, "must be at most 1,000,000, got 1000000000000; use 20"),
        ("20", "must be a whole number, got '20'"),
        ([], "list of at least two times"),
        ([0.5, True], "list of at least two times"),
        ([0.5, "a"], "list of at least two times"),
        ([0.5, 0.5], "times must descend"),
        ([0.5, float("nan")], r"must lie in \[0, 1\), got nan"),
    ],
)
def test_grids_that_make_no_sense_are_refused(steps, words):
    with pytest.raises(InputError, match=f"steps: .*{words}"):
        time_grid(steps, cosine)
