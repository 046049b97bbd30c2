r"""Peak memory of exact scores above the memory in use before, over images, windows, batches and engines.

    python benchmarks/exact_memory.py

Each case runs in a process of its own. Images are noise: memory does not depend on their values.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass

import numpy as np
import torch
from common import arguments, exact_mean, report, watched, write_json

import patchindex as pi
from patchindex.exact import load_kernel
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages


@dataclass(frozen=True)
class Case:
    """A scan; `pixels` is the share of pixels that are asked for, None for the score of all."""

    machine: str
    size: int
    k: int
    images: int
    batch: int
    dtype: str = "float32"
    pixels: float | None = None


CASES = (
    Case("ELS", 32, 7, 20_000, 1),
    Case("ELS", 32, 17, 200_000, 1, pixels=0.002),
    Case("ELS", 32, 7, 64, 256),
    Case("ELS", 32, 17, 8, 4096),
    Case("bbELS", 32, 7, 256, 64),
    Case("LS", 256, 17, 256, 4),
    Case("ELS", 128, 7, 2, 1),
    Case("ELS", 32, 7, 8, 16, "float64"),
    Case("ELS", 32, 7, 1, 64, "float64", 1.0),
    Case("ELS", 32, 31, 4, 64, "float64", 0.7),
    Case("ELS-wrapped", 128, 31, 2, 1, "float64", 0.0001),
    Case("bbELS", 64, 3, 1, 1, "float64"),
    Case("IS", 512, 0, 64, 4),
)


def run(case: Case) -> float:
    """Return the peak above the memory in use before, in MiB."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (case.images, case.size, case.size, 3), np.uint8)
    x = torch.from_numpy(rng.standard_normal((case.batch, 3, case.size, case.size), np.float32))
    name, _, wrapped = case.machine.partition("-")
    dtype = getattr(torch, case.dtype)
    machine = pi.ScoreMachine(
        images, machine=name, train_windows=wrapped or None, estimator="exact", dtype=dtype
    )
    mask = torch.from_numpy(rng.random((case.batch, case.size, case.size)) < (case.pixels or 0))
    mask[:, 0, 0] = True
    training = TrainingImages(images)
    load_kernel()
    with watched(0.003) as peak:
        if case.pixels is None:
            machine.posterior_mean(x, 0.6, k=case.k or None)
        else:
            geometry = Geometry.of(name, case.k, (case.size, case.size), wrapped or "valid")
            exact_mean(training, geometry, x, 0.64, pixels=mask, dtype=dtype)
    return peak.mebibytes - peak.before


def main() -> None:
    parser = arguments(__doc__, source=False)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is not None:
        print(json.dumps(run(CASES[args.case])))
        return
    rows = []
    for i, case in enumerate(CASES):
        done = subprocess.run(
            [sys.executable, __file__, "--case", str(i)], check=True, capture_output=True, text=True
        )
        # A mean of three channels and three numbers beside it, in float32.
        result = 24 * case.batch * case.size**2 / 2**20 if case.pixels is None else None
        rows.append(asdict(case) | {"MiB above": json.loads(done.stdout), "of which result": result})
        print(".", end="", file=sys.stderr, flush=True)
    report(rows, dict.fromkeys(asdict(CASES[0]), "") | {"MiB above": ".0f", "of which result": ".0f"})
    write_json(args.json, rows=rows)


if __name__ == "__main__":
    main()
