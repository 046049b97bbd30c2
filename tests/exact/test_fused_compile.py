"""The fused kernel compiled for GPUs, on any machine that has Triton."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from patchindex.exact import fused_device

pytest.importorskip("triton", minversion="3.2", reason="Triton 3.2 is not installed")

ROOT = Path(__file__).parents[2]
COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from patchindex.exact.fused_device import Settings
from patchindex.exact.window_tables import Layout
from patchindex.kernels import fused

FLOAT16, FLOAT32, FLOAT64, INT32, INT64 = "*fp16", "*fp32", "*fp64", "*i32", "*i64"


def compile(kernel, pointers, constants, options, capability):
    names = kernel.arg_names
    numbers = [name for name in names if name not in constants][len(pointers):]
    aligned = range(len(pointers)), [names.index(name) for name in numbers if name == "stride"]
    source = ASTSource(
        fn=kernel,
        signature={**dict(zip(names, pointers)), **dict.fromkeys(numbers, "i32"),
                   **dict.fromkeys(constants, "constexpr")},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for some in aligned for i in some},
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": True, **options})


found = {}
for capability, settings in ((90, Settings(1, 227 << 10)), (89, Settings(1, 99 << 10))):
    for channels, k, rows in (
        (1, 3, 128), (3, 3, 16), (3, 5, 128), (3, 7, 128), (3, 9, 128), (3, 17, 128), (3, 17, 16),
    ):
        layout = Layout.of(k * k * channels, settings.most_held)
        options = settings.of_program(rows, layout)
        constants = {
            "CHANNELS": channels, "BM": rows, "BN": options.pop("BN"),
            "BD": layout.first, "REST": layout.rest, "HELD": layout.held,
        }
        pointers = [FLOAT16, FLOAT16, FLOAT32, FLOAT16, FLOAT32, INT32, INT32, FLOAT32]
        binary = compile(fused.scan_block, pointers, constants, options, capability)
        ptx = binary.asm["ptx"]
        found[f"{capability} {channels} {k} {rows}"] = {
            "shared": binary.metadata.shared, "bytes": len(binary.asm["cubin"]), "wgmma": "wgmma.mma" in ptx,
            "mma": "mma.sync" in ptx, "held": layout.held, "numbers": layout.first + layout.rest,
            "stages": options["num_stages"], "registers": options.get("maxnreg"),
        }
for channels in (1, 3):
    pointers = [FLOAT16, FLOAT32, INT32, INT32, FLOAT16, FLOAT32]
    compile(fused.unfold, pointers, {"CHANNELS": channels, "BN": 32, "BD": 64}, {}, 90)
    pointers = [FLOAT32, INT64, FLOAT32, FLOAT64]
    compile(fused.merge_segments, pointers, {"SUMS": 2 + channels, "BM": 32, "BS": 32}, {}, 90)
print(json.dumps(found))
"""


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """The kernels for an H100 and for a GPU with 99 KiB of shared memory, compiled by another process."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }
    # Triton reads the source of its kernels, not of this program.
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=env)
    if "ptxas" in done.stderr and "not found" in done.stderr.lower():
        pytest.skip("this Triton has no ptxas")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_kernels_compile_for_gpus(compiled):
    assert len(compiled) == 14
    assert all(found["bytes"] > 10_000 for found in compiled.values())


def test_products_go_to_the_tensor_cores(compiled):
    for case, found in compiled.items():
        warpgroups = case.startswith("90") and case.endswith("128")
        assert found["wgmma" if warpgroups else "mma"], case


def test_programs_fit_into_shared_memory(compiled):
    """Alone, or where registers are limited for that, beside another program."""
    for case, found in compiled.items():
        most = (227 if case.startswith("90") else 99) << 10
        assert found["shared"] + 1024 <= (most // 2 if found["registers"] else most + 1024), case


def test_shared_memory_is_estimated_as_the_compiler_has_it(compiled):
    seen = set()
    for case, found in compiled.items():
        if case.startswith("90") and case.endswith("128"):
            kind = (found["held"], found["stages"])
            estimate = {
                (True, 2): found["numbers"] * fused_device.HELD_BYTES,
                (True, 1): found["numbers"] * fused_device.HELD_BYTES_ONCE,
                (False, 3): fused_device.STREAMED_BYTES,
            }[kind]
            assert found["shared"] <= estimate + fused_device.COLUMN_BYTES * found["held"], case
            seen.add(kind)
    assert len(seen) == 3
