"""Noise schedules have the published values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from patchindex.errors import InputError
from patchindex.networks.conversions import NoiseTable
from patchindex.schedules import (
    NOISE_SCHEDULES,
    LocalitySchedule,
    cosine,
    edm,
    flow,
    linear,
    noise_schedule,
    squaredcos,
    time_of,
)


def test_cosine_has_the_values_of_the_paper():
    # beta at the four times of the shared golden file, as stored there.
    golden = {0.05: 0.0060587, 0.3: 0.20308991, 0.6: 0.64737759, 0.95: 0.99185311}
    for t, beta in golden.items():
        assert cosine(t) == pytest.approx(beta, abs=1e-8)
    assert cosine(0) == 0
    assert cosine(0.504) == pytest.approx(0.5, abs=1e-15)  # half of 1.008
    # The 1.008 keeps some signal at t = 1.
    assert 1 - cosine(1) == pytest.approx(math.sin(math.pi * 0.008 / 2.016) ** 2, rel=1e-9)


def test_linear_has_the_values_of_ddpm():
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000, dtype=np.float64))
    found = [linear((n + 1) / 1000) for n in range(1000)]
    np.testing.assert_allclose(found, 1 - kept, rtol=1e-11)  # 1 - kept has lost digits at small n
    assert linear(0) == 0
    # Between two steps, log(1 - beta) is linear.
    middle = (math.log(kept[499]) + math.log(kept[500])) / 2
    assert math.log(1 - linear(0.5005)) == pytest.approx(middle, rel=1e-12)


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_beta_ascends_from_zero_to_less_than_one(name):
    values = [NOISE_SCHEDULES[name](t) for t in np.linspace(0, 1, 4000, endpoint=False)]
    assert (np.diff(values) > 0).all()
    assert values[0] == 0
    assert 0.99 < values[-1] < 1
    assert noise_schedule(name) is noise_schedule(NOISE_SCHEDULES[name])
    assert NOISE_SCHEDULES[name].__name__ == name  # settings have the name


def test_squaredcos_is_the_schedule_of_nichol_and_dhariwal():
    # betas_for_alpha_bar of their code: increments are cut at .999, which only the last one meets.
    def f(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    kept = np.cumprod([1 - min(1 - f((i + 1) / 1000) / f(i / 1000), 0.999) for i in range(1000)])
    found = [squaredcos((i + 1) / 1000) for i in range(999)]
    np.testing.assert_allclose(found, 1 - kept[:-1], rtol=0, atol=1e-12)
    assert squaredcos(1e-9) == pytest.approx(
        1e-9 * math.pi / 1.008 * math.tan(math.pi * 0.004 / 1.008), rel=1e-6
    )


def test_flow_and_edm_are_the_noise_of_their_images():
    for t in (0.001, 0.3, 0.97):
        # z = (1 - t) x_0 + t eps, divided by its norm
        norm = math.hypot(1 - t, t)
        assert flow(t) == pytest.approx((t / norm) ** 2, rel=1e-14)
        sigma = (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
        assert edm(t) == pytest.approx(sigma**2 / (1 + sigma**2), rel=1e-14)


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_the_time_of_a_noise_variance(name):
    noise = NOISE_SCHEDULES[name]
    for t in (1e-6, 1e-3, 0.02, 0.5, 0.99, 0.9999):
        assert noise(time_of(noise, noise(t))) == pytest.approx(noise(t), rel=1e-11)
    with pytest.raises(InputError, match="has no noise variance"):
        time_of(noise, 1.0)
    with pytest.raises(InputError, match="has no noise variance"):
        time_of(noise, 0.0)


def test_the_time_of_a_noise_variance_in_a_table_of_steps():
    table = NoiseTable([0.1, 0.2, 0.5, 0.9])
    for beta in (0.1, 0.2, 0.5, 0.9):
        assert table(time_of(table, beta)) == beta
    assert table(time_of(table, 0.45)) == 0.5
    with pytest.raises(InputError, match=r"has no noise variance 0\.95; its largest is 0\.9; use less noise"):
        time_of(table, 0.95)


def test_noise_schedule_by_name_or_as_a_function():
    assert noise_schedule("cosine") is cosine
    assert noise_schedule("linear") is linear

    def other(t):
        return t

    assert noise_schedule(other) is other
    with pytest.raises(
        InputError, match="noise: unknown noise schedule 'sine'; use cosine, edm, flow, linear, squaredcos"
    ):
        noise_schedule("sine")


def test_a_noise_schedule_that_is_added_has_a_name(monkeypatch):
    monkeypatch.setitem(NOISE_SCHEDULES, "half", lambda t: t / 2)
    assert noise_schedule("half")(0.5) == 0.25


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        (torch.tensor, "gives Tensor at t = 0; return a number"),
        (lambda t: t + 0j, "gives complex at t = 0"),
        (lambda t: None, "gives NoneType at t = 0"),
        (lambda t: np.array(t), "gives ndarray at t = 0"),
        (lambda t: t or -1e-17, "gives beta = -1e-17 at t = 0"),
        (lambda t: 1.2 * t, "gives beta = 1.002 at t = 0.835"),
        (lambda t: math.nan, "gives beta = nan at t = 0"),
        (lambda t: 1 - t if t else 0.0, "falls from 0.995 at t = 0.005 to 0.99 at t = 0.01"),
        (lambda t: 1 / 0, "the function fails at t = 0 .ZeroDivisionError: division by zero"),
        (lambda t, more: t, "the function fails at t = 0 .TypeError"),
        (torch.sin, "the function fails at t = 0 .TypeError"),
        (None, "unknown noise schedule None"),
        ([], r"unknown noise schedule \[\]"),
    ],
)
def test_a_function_that_is_no_noise_schedule_is_refused_when_it_is_given(noise, words):
    for use in (noise_schedule, lambda noise: LocalitySchedule.of([3, 3, 5], noise)):
        with pytest.raises(InputError, match=f"noise: {words}"):
            use(noise)


@pytest.mark.parametrize("noise", [np.float32, lambda t: 0.5, lambda t: min(1.0, 1.2 * t)])
def test_real_numbers_that_do_not_fall_are_accepted(noise):
    assert noise_schedule(noise) is noise
