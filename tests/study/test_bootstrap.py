"""Bootstrap intervals cover as often as they say, and do not depend on anything but the seed."""

from __future__ import annotations

import numpy as np
import pytest

from patchindex.errors import InputError
from patchindex.study import bootstrap
from patchindex.study.bootstrap import bootstrap_interval, median_interval


def test_intervals_cover_the_median_of_a_known_distribution():
    rng = np.random.default_rng(0)
    found = [median_interval(rng.exponential(size=40), seed=i, resamples=2000) for i in range(400)]
    covered = np.mean([low <= np.log(2) <= high for _, low, high in found])
    assert 0.92 < covered < 0.98  # three standard errors of 400 draws around 0.95
    assert np.mean([high - low for _, low, high in found]) == pytest.approx(4 / np.sqrt(40), rel=0.15)


def test_the_value_is_the_median_and_lies_inside():
    value, low, high = median_interval([3.0, 1.0, 2.0, 5.0])
    assert value == 2.5
    assert 1.0 <= low <= value <= high <= 5.0


def test_equal_seeds_give_equal_intervals_in_any_memory(monkeypatch):
    values = np.random.default_rng(1).normal(size=31)
    whole = median_interval(values, seed=3, resamples=50)
    monkeypatch.setattr(bootstrap, "BLOCK", 100)
    assert median_interval(values, seed=3, resamples=50) == whole
    assert median_interval(values, seed=4, resamples=50) != whole


def test_the_mean_has_an_interval_in_the_same_way():
    values = np.random.default_rng(2).normal(size=700)
    found = bootstrap_interval(values, np.mean, resamples=2000)  # in two blocks
    drawn = np.random.default_rng(0).integers(0, 700, (2000, 700))
    assert found[1:] == tuple(np.quantile(values[drawn].mean(1), [0.025, 0.975]))
    assert found.value == pytest.approx(values.mean(), rel=1e-12)


@pytest.mark.parametrize("values", [[], [1.0, np.nan]])
def test_values_that_are_not_numbers_are_refused(values):
    with pytest.raises(InputError, match="values: must be finite numbers"):
        median_interval(values)
