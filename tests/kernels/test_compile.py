"""Compiling the kernel: for which processor, how often, and where the result is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding
import pytest

from patchindex import exact
from patchindex.kernels import scan as kernel
from patchindex.kernels import simd

NARROW = """
from numba.core import caching
import numpy as np, torch
{patch}
from patchindex import exact
from patchindex.kernels import simd
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
rng = np.random.default_rng(0)
training = TrainingImages(rng.integers(0, 256, (40, 12, 12, 3), np.uint8))
x = torch.from_numpy(rng.standard_normal((1, 3, 12, 12)))
first, second = exact.load_kernel(), exact.load_kernel()
worst = 0.0
for machine, k in (("ELS", 5), ("bbELS", 3), ("LS", 7)):
    geometry = Geometry.of(machine, k, (12, 12))
    ours = exact.scan(training, geometry, x.float(), 0.6, 0.64).mean()
    truth = exact.scan(training, geometry, x, 0.6, 0.64, dtype=torch.float64).mean()
    worst = max(worst, (ours - truth).abs().max().item())
print(simd.BLOCK, first is not None, second is None, worst)
"""


def run(cache: Path, patch: str = "", **environment: str) -> list[str]:
    # A process of its own: what to compile for is settled when numba is imported.
    done = subprocess.run(
        [sys.executable, "-c", NARROW.format(patch=patch)],
        env=os.environ | {"NUMBA_CACHE_DIR": str(cache)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_loading_compiles_both_kernels():
    exact.load_kernel()
    assert exact.load_kernel() is None
    for function in (kernel.prepare, kernel.scan_all, kernel.scan_pixels, kernel.flush):
        assert len(function.signatures) == 1


@pytest.mark.parametrize(("features", "block"), [("+avx2,+avx512f", 64), ("+avx2,-avx512f", 32), ("", 32)])
def test_blocks_are_as_wide_as_the_registers_allow(features, block):
    assert simd._widest(frozenset(features.split(","))) == block


def test_a_processor_with_narrower_registers(tmp_path):
    """The kernel for AVX2 agrees with float64, and is compiled once."""
    features = llvmlite.binding.get_host_cpu_features()
    if not features.get("avx2"):
        pytest.skip("no x86 processor with AVX2")
    narrow = ",".join(
        f"{'+' if there and not name.startswith('avx512') else '-'}{name}" for name, there in features.items()
    )
    settings = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": narrow}
    for expected in ("True", "False"):
        block, compiled, kept, worst = run(tmp_path, **settings)
        assert (block, compiled, kept) == ("32", expected, "True")
        assert float(worst) < 2e-5


def test_nowhere_to_keep_what_is_compiled(tmp_path):
    """A read-only installation without a home folder: compiled anew by each process."""
    _, compiled, kept, worst = run(tmp_path, "caching.CacheImpl._locator_classes = []")
    assert (compiled, kept) == ("True", "True")
    assert float(worst) < 2e-5
    assert not list(tmp_path.iterdir())
