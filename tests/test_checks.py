"""Checks of arguments: whole numbers and paths."""

from pathlib import Path

import numpy as np
import pytest

import patchindex as pi
from patchindex.checks import check_least, check_optional, check_path
from patchindex.errors import InputError


@pytest.mark.parametrize("value", [2, np.int8(2), np.uint64(3), 2**70])
def test_whole_numbers_are_accepted(value):
    check_least(steps=(value, 2))


@pytest.mark.parametrize("value", [2.0, "2", None, True, 2j, [2], np.float64(3)])
def test_other_values_are_no_whole_numbers(value):
    with pytest.raises(InputError, match=r"steps: must be a whole number, got .*; use 2 or more"):
        check_least(steps=(value, 2))


def test_a_whole_number_may_have_a_largest_value():
    check_least(steps=(np.int64(9), 2, 9))
    for value in (1, 10):
        with pytest.raises(InputError, match=f"steps: must be from 2 to 9, got {value}; use 2 to 9"):
            check_least(steps=(value, 2, 9))


def test_none_is_accepted_where_a_value_is_optional():
    check_optional(steps=(None, 2))
    with pytest.raises(InputError, match="steps: must be at least 2, got 1"):
        check_optional(steps=(1, 2))


@pytest.mark.parametrize("value", [None, 3, b"s.zarr", ["s.zarr"], "", "a\0b"])
def test_values_that_are_no_path_are_refused(value):
    for use in (check_path, pi.open_index, pi.verify, lambda path: pi.append(path, np.zeros((1, 8, 8)))):
        with pytest.raises(InputError, match="path: is no path"):
            use(value)
    check_path("s.zarr")
    check_path(Path("s.zarr"))
