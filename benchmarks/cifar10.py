r"""Estimators on a store of all of CIFAR-10, against the exact steps and images kept in benchmarks/data.

    patchindex build cifar10_train.npz -o STORE --scales 3,5,7,9,11,13,15
    python benchmarks/cifar10.py STORE --ways exact auto topk --json F

Two tables: each step of the exact trajectory of seed 0, where estimate and exact score see the same noisy
image; and the images that each way draws by itself from the noise of seeds 0 to 3, four at once (not for
`exact`, whose images are kept).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy import compared
from timing import table

import patchindex as pi
from patchindex.study.metrics import pearson_r, r2

DATA = Path(__file__).parent / "data"
WAYS: dict[str, dict[str, Any]] = {
    "exact": {"estimator": "exact"},
    "auto": {"estimator": "auto", "tolerance": 0.01},
    "topk": {"estimator": "topk", "probes": 32},
    "topk-1024": {"estimator": "topk", "candidates": 1024, "probes": 128},
}


def step(machine: pi.ScoreMachine, x: torch.Tensor, t: float, k: int, exact: torch.Tensor) -> dict[str, Any]:
    """Time a step, and compare it with the exact mean."""
    start = time.perf_counter()
    e = machine.posterior_mean(x, t, k=k)
    seconds = time.perf_counter() - start
    return compared(e, exact, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["auto"])
    parser.add_argument("--parts", nargs="+", choices=["steps", "images"], default=["steps", "images"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    store = pi.open_index(args.store)
    machines = {
        way: pi.ScoreMachine(store, locality="cifar10-resnet-circular", **WAYS[way]) for way in args.ways
    }
    print(f"{store}, {torch.get_num_threads()} threads")
    kept: dict[str, list[dict[str, Any]]] = {"steps": [], "images": []}
    if "steps" in args.parts:
        with np.load(DATA / "cifar10_exact_trajectory.npz") as archive:
            path = {name: archive[name] for name in ("t", "k", "x", "mean")}
        warm = set()
        for t, k, x, mean in zip(*path.values(), strict=True):
            noisy, exact = torch.from_numpy(x)[None], torch.from_numpy(mean)[None]
            for way, machine in machines.items():
                if (way, k) not in warm:  # opens the scale, loads kernels
                    machine.posterior_mean(noisy, float(t), k=int(k), seed=1)
                    warm.add((way, k))
                row = {"t": float(t), "k": int(k), "way": way}
                kept["steps"].append(row | step(machine, noisy, float(t), int(k), exact))
        forms = dict.fromkeys(kept["steps"][0], ".3f") | {"t": ".2f", "k": "d", "way": "s"}
        forms |= dict.fromkeys(("rmse", "stderr"), ".4f") | {"rmse/stderr": ".2f", "exact": ".4f"}
        forms |= dict.fromkeys(("us a pixel", "codes", "patches"), ".0f")
        print(table(kept["steps"], forms), flush=True)
    if "images" in args.parts:
        with np.load(DATA / "cifar10_exact_finals.npz") as archive:
            seeds, x_T, exact_images = (archive[name] for name in ("seeds", "x_T", "images"))
        for way, machine in machines.items():
            if way == "exact":
                continue
            start = time.perf_counter()
            drawn = pi.sample(machine, x_T=torch.from_numpy(x_T), steps=20).images
            seconds = (time.perf_counter() - start) / len(x_T)
            truth = torch.from_numpy(exact_images)
            for i, seed in enumerate(seeds):
                kept["images"].append(
                    {
                        "way": way,
                        "seed": int(seed),
                        "s an image": seconds,
                        "pearson r": float(pearson_r(drawn[i : i + 1], truth[i : i + 1])),
                        "R2": float(r2(drawn[i : i + 1], truth[i : i + 1])),
                        "rmse": float((drawn[i] - truth[i]).square().mean().sqrt()),
                    }
                )
        forms = {"way": "s", "seed": "d", "s an image": ".1f", "pearson r": ".5f", "R2": ".5f", "rmse": ".4f"}
        print(table(kept["images"], forms), flush=True)
    if args.json:
        args.json.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
