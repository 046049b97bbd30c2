"""Damaged inputs of every format are refused in one line, or give what other libraries give.

`python tests/fuzz/fuzz_files.py` runs more cases, and shows them.
"""

from __future__ import annotations

import numpy as np
import pytest
from fuzz_files import EVERY, GOOD, in_child, run_case

CASES = 20  # of each format
BY_USE = ("resumed-run",)  # what nothing else can compute


@pytest.mark.parametrize("name", EVERY)
def test_an_input_that_is_not_damaged_is_right(name, tmp_path):
    expected = "no reference" if name in BY_USE else "right"
    assert in_child(name, tmp_path, EVERY[name].write(tmp_path))[0] == expected


@pytest.mark.parametrize("name", EVERY)
def test_a_damaged_input_is_refused_or_right(name):
    found = [run_case(name, seed=1, number=number) for number in range(CASES)]
    assert not [case for case in enumerate(found) if case[1][0] not in GOOD]
    assert name in BY_USE or np.mean([outcome == "no reference" for outcome, _ in found]) < 0.5


def test_cases_are_the_same_each_time():
    for name in ("png", "npz"):
        assert [run_case(name, 2, i)[0] for i in range(3)] == [run_case(name, 2, i)[0] for i in range(3)]
