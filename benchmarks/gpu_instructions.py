"""The instructions of the fused kernel, counted in the code that Triton compiles for an H100 or H200.

    python benchmarks/gpu_instructions.py

needs Triton with its assembler and disassembler, and no GPU. The main loop is counted per pair of a pixel and
a patch; a loop inside it (over long windows) counts once. A multiprocessor starts 128 instructions of single
threads a cycle, so that the instructions bound the time of a step over 50 000 images of 32 x 32 x 3, whatever
else the code waits for.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import triton
from common import arguments, report, write_json
from gpu_limits import RATES, pairs_per_second
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from patchindex.exact.fused_device import settings_of
from patchindex.exact.window_tables import Layout
from patchindex.kernels import fused

CAPABILITY, ROWS, IMAGES, SIZE, CHANNELS = 90, 128, 50_000, 32, 3
POINTERS = ("*fp16", "*fp16", "*fp32", "*fp16", "*fp32", "*i32", "*i32", "*fp32")
FLOAT = ("FADD", "FFMA", "FMUL", "FMNMX", "FSEL", "MUFU", "HADD2")
MEMORY = ("LDG", "LDS", "LDSM", "STS", "STSM", "SHFL", "LDGSTS")


def compiled(k: int) -> tuple[Any, int]:
    """Return the compiled `scan_block` for windows of k x k, and the pairs of a thread in a pass."""
    layout = Layout.of(k * k * CHANNELS)
    options = settings_of(torch.device("cpu")).of_program(ROWS, layout)  # an H100's
    columns = options.pop("BN")
    constants = {
        "CHANNELS": CHANNELS, "BM": ROWS, "BN": columns,
        "BD": layout.first, "REST": layout.rest, "HELD": layout.held,
    }  # fmt: skip
    names = fused.scan_block.arg_names
    numbers = [name for name in names if name not in constants][len(POINTERS) :]
    aligned = [*range(len(POINTERS)), names.index("stride")]
    source = ASTSource(
        fn=fused.scan_block,
        signature={
            **dict(zip(names, POINTERS, strict=False)),
            **dict.fromkeys(numbers, "i32"),
            **dict.fromkeys(constants, "constexpr"),
        },
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    binary = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    return binary, ROWS * columns // (32 * options["num_warps"])


def loop_of(binary: Any) -> list[str]:
    """Return the names of the instructions of the longest loop."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout
    labels: dict[str, int] = {}
    names: list[str] = []
    loops: list[tuple[int, int]] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(names)
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s*(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(.*);", line):
            names.append(found[1])
            target = re.search(r"\.L_x_\d+", found[2])
            if found[1] == "BRA" and target and target[0] in labels:  # back to a label that came before
                loops.append((labels[target[0]], len(names)))
    first, last = max(loops, key=lambda loop: loop[1] - loop[0])
    return names[first:last]


def main() -> None:
    args = arguments(__doc__, source=False).parse_args()
    rates, rows = RATES["H200"], []
    for k in (3, 5, 7, 9, 11, 13, 15, 17):
        binary, pairs = compiled(k)
        counts = Counter(loop_of(binary))
        of_step = IMAGES * SIZE**2 * (SIZE - k + 1) ** 2
        all_, limit = (
            sum(counts.values()) / pairs,
            pairs_per_second(rates, "fused", k, CHANNELS, SIZE, SIZE**2),
        )
        rows.append({
            "k": k, "shared KiB": binary.metadata.shared / 1024, "instructions": all_,
            "float32": sum(counts[name] for name in FLOAT) / pairs,
            "memory": sum(counts[name] for name in MEMORY) / pairs,
            "ms": 1e3 * of_step * all_ / (rates.fp32 / 2),
            "limit ms": 1e3 * of_step / limit,
        })  # fmt: skip
    forms = {"k": "d", "shared KiB": ".0f"} | dict.fromkeys(("instructions", "float32", "memory"), ".1f")
    report(rows, forms | {"ms": ".0f", "limit ms": ".0f"}, "per pair; ms of a step on an H200")
    write_json(args.json, scales=rows)


if __name__ == "__main__":
    main()
