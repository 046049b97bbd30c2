r"""Estimators on a store of all of CIFAR-10, against the exact steps and images in benchmarks/data.

    patchindex build cifar10_train.npz -o STORE --locality cifar10-resnet-circular --no-tune
    python benchmarks/cifar10.py STORE --ways exact auto topk --json FILE

Two tables. `steps`: each step of the exact trajectory of seed 0, where every way sees the same noisy image.
`images`: the images that each way draws by itself from the noise of seeds 0 to 3, four at once (but `exact`,
whose images are kept).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from common import FINALS, TRAJECTORY, arguments, report, write_json

import patchindex as pi
from patchindex.study.metrics import accuracy, pearson_r, r2, rmse

WAYS: dict[str, dict[str, Any]] = {
    "exact": {"estimator": "exact"},
    "auto": {"estimator": "auto", "tolerance": 0.01},
    "topk": {"estimator": "topk", "probes": 32},
    "topk-1024": {"estimator": "topk", "candidates": 1024, "probes": 128},
}


def steps(machines: dict[str, pi.ScoreMachine]) -> list[dict[str, Any]]:
    """Time each step of the exact trajectory, and compare its posterior mean with the exact one."""
    rows, warm = [], set()
    with np.load(TRAJECTORY) as archive:
        path = [archive[name] for name in ("t", "k", "x", "mean")]
    for t, k, *arrays in zip(*path, strict=True):
        t, k, (x, exact) = float(t), int(k), (torch.from_numpy(array)[None] for array in arrays)
        for way, machine in machines.items():
            if (way, k) not in warm:  # opens the scale, loads kernels
                machine.posterior_mean(x, t, k=k, seed=1)
                warm.add((way, k))
            start = time.perf_counter()
            e = machine.posterior_mean(x, t, k=k)
            pixels = e.stderr.numel()
            row = {"t": t, "k": k, "way": way, "us per pixel": 1e6 * (time.perf_counter() - start) / pixels}
            row |= {name: each[0] for name, each in accuracy(e, exact).items()}
            row["rmse/stderr"] = row["rmse"] / row["stderr"] if row["stderr"] else None
            row |= {"patches": e.patches_evaluated / pixels, "exact": e.exact_pixels / pixels}
            rows.append(row)
    forms = {"t": ".2f", "k": "d", "way": "s", "us per pixel": ".0f", "rmse": ".4f", "stderr": ".4f"}
    forms |= {"rmse/stderr": ".2f", "max_error": ".3f", "coverage": ".3f", "captured_mass": ".3f"}
    report(rows, forms | {"patches": ".0f", "exact": ".4f"})
    for way in machines:
        total = sum(row["us per pixel"] for row in rows if row["way"] == way) * pixels / 1e6
        print(f"{way}: all steps {total:.1f} s")
    return rows


def images(machines: dict[str, pi.ScoreMachine]) -> list[dict[str, Any]]:
    """Draw with each way from the kept noise, and compare with the exact images."""
    rows = []
    with np.load(FINALS) as archive:
        seeds = archive["seeds"].tolist()
        noise, exact = (torch.from_numpy(archive[name]) for name in ("x_T", "images"))
    for way, machine in machines.items():
        if way == "exact":
            continue
        start = time.perf_counter()
        drawn = pi.sample(machine, x_T=noise, steps=20).images
        seconds = (time.perf_counter() - start) / len(noise)
        measures = {"pearson r": pearson_r, "R2": r2, "rmse": rmse}
        found = {name: measure(drawn, exact).tolist() for name, measure in measures.items()}
        for i, seed in enumerate(seeds):
            row = {"way": way, "seed": seed, "s per image": seconds}
            rows.append(row | {name: each[i] for name, each in found.items()})
    forms = {"way": "s", "seed": "d", "s per image": ".1f", "pearson r": ".5f", "R2": ".5f", "rmse": ".4f"}
    report(rows, forms)
    return rows


PARTS = {"steps": steps, "images": images}


def main() -> None:
    parser = arguments(__doc__, source=False)
    parser.add_argument("store")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["auto"])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args()
    store = pi.open_index(args.store)
    print(f"{store}, {torch.get_num_threads()} threads")
    machines = {
        way: pi.ScoreMachine(store, locality="cifar10-resnet-circular", **WAYS[way]) for way in args.ways
    }
    write_json(args.json, **{part: PARTS[part](machines) for part in args.parts})


if __name__ == "__main__":
    main()
