"""Peak memory of a build, measured and compared with its plan."""

from __future__ import annotations

import pytest
from watched import linux_only, run_watched

BUILD = """
import patchindex as pi
from patchindex.build import BuildSettings, plan_build

path, k, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
source = pi.open_images("data/fashion_mnist_6k.npz", limit=n)
plan, _ = plan_build(source, BuildSettings([k]))
pi.build_index(source.subset(50), path, [k])  # compiles
took = rise(lambda: pi.build_index(source, path, [k], overwrite=True, memory=plan.memory_bytes))
print(json.dumps([plan.memory_bytes, took]))
"""


@linux_only
@pytest.mark.parametrize(("k", "n"), [(3, 6000), (15, 1500)])
def test_a_build_keeps_to_the_memory_of_its_plan(tmp_path, k, n):
    planned, taken = run_watched(BUILD, tmp_path / "s.zarr", k, n)
    assert taken <= planned
