"""Peak memory of a build, measured and compared with its plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from watched import linux_only, run_watched

DATA = Path(__file__).parents[2] / "data" / "fashion_mnist_6k.npz"

BUILD = """
import patchindex as pi
from patchindex.build import BuildSettings, plan_build

data, path, k, n = *sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4])
source = pi.open_images(data, limit=n)
plan, _ = plan_build(source, BuildSettings([k]))
pi.build_index(source.subset(50), path, [k])  # compiles
took = rise(lambda: pi.build_index(source, path, [k], overwrite=True, memory=plan.memory_bytes))
print(json.dumps([plan.memory_bytes, took]))
"""


@linux_only
@pytest.mark.parametrize(("k", "n"), [(3, 6000), (15, 1500)])
def test_a_build_keeps_to_the_memory_of_its_plan(tmp_path, k, n):
    planned, taken = run_watched(BUILD, DATA, tmp_path / "s.zarr", k, n)
    assert taken <= planned
