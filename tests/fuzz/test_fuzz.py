"""Damaged sources of every format are refused in one line, or give the pixels that other libraries read.

`python tests/fuzz/fuzz_files.py` runs more cases, and shows them.
"""

from __future__ import annotations

import numpy as np
import pytest
from fuzz_files import GOOD, in_child, run_case
from mutants import SEEDS

CASES = 20  # of each format


@pytest.mark.parametrize("name", SEEDS)
def test_a_source_that_is_not_damaged_is_read(name, tmp_path):
    assert in_child(name, tmp_path, SEEDS[name].write(tmp_path))[0] == "right"


@pytest.mark.parametrize("name", SEEDS)
def test_a_damaged_source_is_refused_or_read_right(name):
    found = [run_case(name, seed=1, number=number) for number in range(CASES)]
    assert not [case for case in enumerate(found) if case[1][0] not in GOOD]
    assert np.mean([outcome == "no reference" for outcome, _ in found]) < 0.5


def test_cases_are_the_same_each_time():
    for name in ("png", "npz"):
        assert [run_case(name, 2, i)[0] for i in range(3)] == [run_case(name, 2, i)[0] for i in range(3)]
