"""Noise schedules have the published values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from patchindex.errors import InputError
from patchindex.schedules import NOISE_SCHEDULES, LocalitySchedule, cosine, linear, noise_schedule


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
    values = [NOISE_SCHEDULES[name](t) for t in np.linspace(0, 1, 4001)]
    assert (np.diff(values) > 0).all()
    assert values[0] == 0
    assert 0.99 < values[-1] < 1


def test_noise_schedule_by_name_or_as_a_function():
    assert noise_schedule("cosine") is cosine
    assert noise_schedule("linear") is linear

    def other(t):
        return t

    assert noise_schedule(other) is other
    with pytest.raises(InputError, match="noise: unknown noise schedule 'sine'; use cosine, linear"):
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
