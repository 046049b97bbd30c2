"""Samplers: each follows the flow of data whose score is known, at the order of its method."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from patchindex.denoisers import ScoreMachine
from patchindex.errors import InputError
from patchindex.networks import NoiseTable
from patchindex.sampling import SAMPLERS, ddim, ddpm, dpmpp, euler, heun, sample, time_grid
from patchindex.schedules import cosine


def test_ddim_goes_to_the_point_that_all_data_are_at():
    """With one data point v the score is (a v - x) / beta, and an x_t is a v + sqrt(beta) eps: eps stays."""
    v = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    start = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def score(x, t):
        beta = cosine(t)
        return ((1 - beta) ** 0.5 * v - x) / beta

    for steps in (2, 5, 20):
        path = []
        end = ddim(score, start, steps, cosine, path.append)
        first = cosine((steps - 1) / steps)
        eps = (start - (1 - first) ** 0.5 * v) / first**0.5
        for step in path:
            beta = cosine((step["i"] - 1) / steps)
            expected = (1 - beta) ** 0.5 * v + beta**0.5 * eps
            torch.testing.assert_close(step["x"], expected, rtol=0, atol=1e-12)  # float64
        torch.testing.assert_close(end, v.expand(3, -1, -1, -1), rtol=0, atol=1e-12)


def test_ddim_scales_gaussian_data_as_its_marginals():
    """For data N(0, s^2) the exact flow scales x by the ratio of the marginals' standard deviations."""
    s = 0.5

    def spread(t):
        beta = cosine(t)
        return ((1 - beta) * s**2 + beta) ** 0.5

    start = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = []
    for steps in (20, 200, 2000):
        end = ddim(lambda x, t: -x / spread(t) ** 2, start, steps, cosine)
        expected = start * s / spread((steps - 1) / steps)
        errors.append(float((end / expected - 1).abs().max()))
    # A method of first order: ten times the steps, a tenth of the error.
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1] / 5
    assert errors[2] < 1e-3


def test_ddim_takes_the_steps_of_the_grid():
    asked, steps = [], []

    def score(x, t):
        asked.append(t)
        return torch.zeros_like(x)

    ddim(score, torch.ones(1, 1, 2, 2), 20, cosine, lambda step: steps.append((step["i"], step["t"])))
    assert asked == [i / 20 for i in range(19, 0, -1)]
    assert steps == [(i, i / 20) for i in range(19, 0, -1)]


S = 0.5  # standard deviation of Gaussian data


def gaussian(x, t):
    """Return the score of Gaussian data at time t."""
    beta = cosine(t)
    return -x / ((1 - beta) * S**2 + beta)


def flow_of_gaussian(start, first, last=0.0):
    """Return the end of the probability flow of Gaussian data, which scales x by its standard deviation."""
    spread = [((1 - cosine(t)) * S**2 + cosine(t)) ** 0.5 for t in (first, last)]
    return start * spread[1] / spread[0]


def errors(sampler, numbers, spacing):
    """Return the largest relative error of the flow of Gaussian data, per number of steps."""
    start = torch.linspace(-2, 2, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    found = []
    for steps in numbers:
        times = time_grid(steps, cosine, spacing)
        end = sampler(gaussian, start, times, cosine)
        found.append(float((end / flow_of_gaussian(start, times[0]) - 1).abs().max()))
    return found


@pytest.mark.parametrize("spacing", ["karras", "log-snr"])
def test_heun_is_of_second_order_and_euler_of_first(spacing):
    coarse, fine = errors(heun, (40, 160), spacing)
    assert fine < coarse / 12  # 16 for the second order, in the limit
    assert fine < 1e-3
    coarse, fine = errors(euler, (20, 80), spacing)
    assert coarse / 5.5 < fine < coarse / 3  # 4 for the first order


@pytest.mark.parametrize("spacing", ["karras", "log-snr"])
def test_dpmpp_is_of_second_order(spacing):
    coarse, fine = errors(dpmpp, (40, 160), spacing)
    assert fine < coarse / 12
    assert fine < 2e-3


def test_dpmpp_goes_to_the_point_that_all_data_are_at():
    """The posterior means of all steps are equal, so each step is exact."""

    def score(x, t):
        return ((1 - cosine(t)) ** 0.5 * 0.3 - x) / cosine(t)

    start = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    end = dpmpp(score, start, 6, cosine)
    torch.testing.assert_close(end, torch.full_like(end, 0.3), rtol=0, atol=1e-12)


def test_euler_takes_the_steps_of_ddim():
    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for spacing in ("uniform", "karras"):
        times = time_grid(9, cosine, spacing)
        assert torch.equal(euler(gaussian, start, times, cosine), ddim(gaussian, start, times, cosine))


def test_ddpm_draws_data_of_the_right_variance():
    """Ancestral sampling of Gaussian data; the steps are small, so that the posterior is nearly Gaussian."""
    start = torch.randn(1, 1, 200, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)

    def draw(x, i):
        return torch.randn(x.shape, dtype=x.dtype, generator=generator)

    end = ddpm(gaussian, start, 400, cosine, draw=draw)
    # 40 000 draws: the standard deviation is known to 0.35 per cent. Three of these, and 1 per cent for the
    # steps.
    assert float(end.std()) == pytest.approx(S, rel=0.02)
    # The noise of the steps, and not the start, makes the image.
    assert abs(float(torch.corrcoef(torch.stack([end.flatten(), start.flatten()]))[0, 1])) < 0.1


def test_a_step_of_ddpm_draws_from_the_posterior_of_the_step():
    """With one data point v the posterior of x' is N(a' v + (a / a') beta' / beta (x - a v), variance)."""
    v, t, t_next = 0.3, 0.7, 0.4
    beta, following = cosine(t), cosine(t_next)
    x = torch.full((1, 1, 1, 1), 0.9, dtype=torch.float64)

    def score(x, t):
        return ((1 - cosine(t)) ** 0.5 * v - x) / cosine(t)

    shares = [
        float(ddim(score, x, [t, t_next], cosine, eta=1.0, draw=lambda x, i, z=z: torch.full_like(x, z)))
        for z in (0.0, 1.0)
    ]
    kept = (1 - beta) / (1 - following)  # the share of x' in x
    # q(x' | x, x_0) of DDPM, equation 7.
    mean = (1 - following) ** 0.5 * (1 - kept) / beta * v + kept**0.5 * following / beta * 0.9
    assert shares[0] == pytest.approx(mean, abs=1e-12)
    assert shares[1] - shares[0] == pytest.approx((following / beta * (1 - kept)) ** 0.5, abs=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_reports_every_step_and_calls_the_model_as_often_as_it_says(name):
    sampler, calls, steps = SAMPLERS[name], [], []

    def model(x, t):
        calls.append(t)
        return gaussian(x, t)

    sampler.function(model, torch.ones(1, 1, 2, 2), 6, cosine, steps.append)
    assert [(step["i"], step["t"], step["t_next"]) for step in steps] == [
        (i, i / 6, (i - 1) / 6) for i in range(5, 0, -1)
    ]
    # A step to the data is an Euler step.
    assert len(calls) == sampler.evaluations * 5 - (sampler.evaluations - 1)
    assert torch.equal(steps[0]["score"], gaussian(torch.ones(1, 1, 2, 2), 5 / 6))


@pytest.mark.parametrize("levels", [10, 13])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_between_equal_noise_variances_changes_nothing(name, levels):
    """A table of fewer levels than steps gives the images of the grid without the repeated levels."""
    table = NoiseTable(torch.linspace(0.05, 0.95, levels))
    times, start = time_grid(40, table), torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    distinct = [later for t, later in pairwise([1.0, *times]) if table(t) != table(later)]
    sampler, path = SAMPLERS[name], []
    options = {"draw": lambda x, i: torch.full_like(x, 0.1)} if sampler.random else {}

    def score(x, t):
        return -x / ((1 - table(t)) * S**2 + table(t))

    end = sampler.function(score, start, times, table, path.append, **options)
    for before, step in pairwise([{"x": start}, *path]):
        if table(step["t"]) == table(step["t_next"]):
            assert torch.equal(step["x"], before["x"])
    assert torch.equal(end, sampler.function(score, start, [times[0], *distinct], table, **options))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_as_short_as_a_rounding_error_is_no_step_before(name):
    """A flat schedule of floats may fall by its last digit, and its step says nothing about the next step."""
    start, calls = torch.ones(1, 1, 2, 2, dtype=torch.float64), []

    def score(x, t):  # the estimates of a posterior mean at equal noise differ
        calls.append(t)
        return -x * (1 + 0.01 * (-1) ** len(calls))

    def flat(t):
        return math.nextafter(0.5, 0) if t < 0.5 else 0.5 if t < 0.8 else 0.9

    sampler = SAMPLERS[name]
    options = {"draw": lambda x, i: torch.full_like(x, 0.1)} if sampler.random else {}
    end = sampler.function(score, start, [0.9, 0.7, 0.4, 0.3, 0.2, 0.1], flat, **options)
    assert float(end.abs().max()) < 2


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_take_a_table_of_fewer_levels_than_steps_and_a_schedule_with_noise_at_0(name, real_images):
    images = real_images(20, 8)[0]
    for noise in (NoiseTable(torch.linspace(0.05, 0.95, 10)), lambda t: 0.01 + 0.9 * round(t, 1)):
        machine = ScoreMachine(images, machine="IS", noise=noise)
        assert float(sample(machine, n=1, steps=20, sampler=name).images.abs().max()) < 1.5


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_eta_out_of_range_is_refused(eta):
    with pytest.raises(InputError, match=r"eta: must lie in \[0, 1\]"):
        ddim(gaussian, torch.ones(1, 1, 2, 2), 5, cosine, eta=eta)
