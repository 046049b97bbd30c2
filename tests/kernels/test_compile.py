"""Compiling the kernels: for which processor, how often, and where the machine code is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import llvmlite.binding
import pytest

import patchindex
from patchindex import exact
from patchindex.kernels import scan as kernel
from patchindex.kernels import simd
from patchindex.kernels.totals import flush

PACKAGE = Path(patchindex.__file__).parent
SCAN = """
import numpy as np, torch
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
    ours = exact.scan(exact.ScoreRequest(training, geometry, x.float(), 0.64)).mean()
    truth = exact.scan(exact.ScoreRequest(training, geometry, x, 0.64, dtype=torch.float64)).mean()
    worst = max(worst, (ours - truth).abs().max().item())
print(simd.BLOCK, first is not None, second is None, worst)
"""
# `flush` adds up the lanes of each sum with `total` of simd.py: here 16 ones.
FLUSH = """
import numpy as np
from patchindex.kernels.scan import Sums
from patchindex.kernels.totals import flush
totals = np.zeros((1, 3))
empty = np.zeros(0, np.float32)
flush(Sums(np.zeros(1, np.float32), np.ones(48, np.float32), empty, np.float32(0)), 1, np.zeros(1), totals)
print(totals[0, 0], sum(flush.stats.cache_misses.values()))
"""

NARROW = """
import numpy as np
from patchindex.kernels import simd_pairs
from patchindex.kernels.nearest import Best, Scratch, best_codes
from patchindex.kernels.codes import Codes, Queries
rng, dims, sizes = np.random.default_rng(0), 21, np.array([90, 0, 40])
values = rng.integers(0, 256, (130, dims), np.uint8)
low, step = rng.normal(0, 1, 32).astype(np.float32), rng.uniform(0.001, 0.01, 32).astype(np.float32)
low[dims:] = step[dims:] = 0
first = np.array([0, 90, 90])
codes = Codes(values.reshape(-1), first * dims, sizes, low, step, dims)
z = rng.normal(0, 1, (5, dims))
best = Best.none(5, 200)
start, visitors = np.array([0, 5, 10, 15]), np.tile(np.arange(5, dtype=np.int32), 3)
scanned = np.zeros(5, np.int64)
best_codes(codes, Queries.of(codes, z, 0.7), start, visitors, 200, best, Scratch.of(dims, 200), scanned)
assert (best.held == 130).all()
y = low[:dims] + (values + 0.5) * step[:dims].astype(np.float64)
worst = 0.0
for q in range(5):
    at = first[best.item[q, :130] >> 32] + (best.item[q, :130] & 0xFFFFFFFF)
    worst = max(worst, np.abs(best.score[q, :130] - (y @ z[q] - 0.7 * (y * y).sum(1))[at]).max())
print(simd_pairs.WIDTH, simd_pairs.INSTRUCTION, worst)
"""


def run(script: str, folder: Path = PACKAGE.parent, **environment: str) -> list[str]:
    """Run a script with the package in `folder`, in a process of its own: its start settles the cache."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", script],
        cwd=folder,  # is searched for modules first
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    """A copy of the package, which may be edited."""
    return shutil.copytree(
        PACKAGE, tmp_path / "copy" / "patchindex", ignore=shutil.ignore_patterns("__pycache__")
    )


def test_loading_compiles_both_kernels():
    exact.load_kernel()
    assert exact.load_kernel() is None
    for function in (kernel.prepare, kernel.scan_all, kernel.scan_pixels, flush):
        assert len(function.signatures) == 1


@pytest.mark.parametrize(("features", "block"), [("+avx2,+avx512f", 64), ("+avx2,-avx512f", 32), ("", 32)])
def test_blocks_are_as_wide_as_the_registers_allow(features, block):
    assert simd._widest(frozenset(features.split(","))) == block


def narrowed(*without: str) -> str:
    """Return numba's setting of this processor's features, without features that have this prefix."""
    features = llvmlite.binding.get_host_cpu_features()
    if not features.get("avx2"):
        pytest.skip("no x86 processor with AVX2")
    return ",".join(
        f"{'+' if there and not name.startswith(without) else '-'}{name}" for name, there in features.items()
    )


def test_avx2_kernels_agree_with_float64_and_are_compiled_once(tmp_path):
    settings = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": narrowed("avx512")}
    settings["NUMBA_CACHE_DIR"] = str(tmp_path)
    for expected in ("True", "False"):
        block, compiled, kept, worst = run(SCAN, **settings)
        assert (block, compiled, kept) == ("32", expected, "True")
        assert float(worst) < 2e-5


@pytest.mark.parametrize(
    ("processor", "without", "width", "instruction"),
    [
        ("haswell", ("avx512",), "8", "llvm.x86.avx2.pmadd.wd"),
        ("x86-64", ("avx", "fma", "f16c", "vaes", "vpclmulqdq"), "4", "llvm.x86.sse2.pmadd.wd"),
        ("x86-64", (), "4", "None"),
    ],
)
def test_scores_are_the_same_on_narrower_processors(tmp_path, processor, without, width, instruction):
    features = narrowed(*without)
    settings = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features if without else "+cx8"}
    *found, worst = run(NARROW, NUMBA_CACHE_DIR=str(tmp_path), **settings)
    assert found == [width, instruction]
    assert float(worst) < 2e-3


def test_edited_helper_and_damaged_machine_code_are_compiled_again(copied_package, tmp_path):
    cache, simd_file = tmp_path / "cache", copied_package / "kernels" / "simd.py"
    old = [cache / f"patchindex-kernels-{i}" for i in range(10)]
    for days, folder in enumerate(old):
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - days * 86400 - 60,) * 2)

    def flush() -> list[str]:
        return run(FLUSH, copied_package.parent, NUMBA_CACHE_DIR=str(cache))

    assert flush() == ["16.0", "1"]
    assert [folder.exists() for folder in old] == [True] * 7 + [False] * 3  # with the new folder, eight
    (code,) = cache.glob("*/patchindex.kernels.totals.flush-*")

    original = simd_file.read_text()
    start = "zero = ir.Constant(F64, 0.0)"
    assert start in original
    simd_file.write_text(original.replace(start, start.replace("0.0", "100.0")))
    assert flush() == ["116.0", "1"]
    simd_file.write_text(original)
    assert flush() == ["16.0", "0"]

    code.write_bytes(code.read_bytes()[:-1])
    assert flush() == ["16.0", "1"]
    assert flush() == ["16.0", "0"]


def test_a_folder_that_takes_no_machine_code_gives_a_warning_of_the_package(tmp_path):
    script = """
import shutil, warnings
import numpy as np
from patchindex.errors import PatchIndexWarning
from patchindex.kernels.compile import FOLDER, compiled
shutil.rmtree(FOLDER)
FOLDER.write_bytes(b"no folder")
@compiled
def double(values):
    values[0] *= 2
warnings.simplefilter("error", PatchIndexWarning)
try:
    double(np.ones(1))
except PatchIndexWarning as warning:
    print(warning)
"""
    reported = " ".join(run(script, NUMBA_CACHE_DIR=str(tmp_path)))
    assert "compiled kernels cannot be kept" in reported
    assert "; set NUMBA_CACHE_DIR to a folder with free space" in reported


def test_read_only_installation_without_home_compiles_in_every_process(copied_package):
    (copied_package / "kernels" / "__pycache__").touch()  # a file, so that no folder can be made there
    nowhere = {"NUMBA_CACHE_DIR": "/dev/null/numba", "PATCHINDEX_CACHE": "/dev/null/patchindex"}
    for _ in range(2):
        assert run(FLUSH, copied_package.parent, **nowhere) == ["16.0", "1"]
