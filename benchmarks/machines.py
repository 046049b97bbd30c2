r"""Seconds an image of machines and labels: `exact` where it is all there is, `auto` against it elsewhere.

    python benchmarks/machines.py cifar10_train.npz --store STORE --small data/fashion_mnist_6k.npz --work DIR

LS and IS on all images of the source; a label of a store against all of it; and a small data set, of which
stores with and without an operating curve are built in DIR where they are missing. Ways take turns; medians.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timing import table

import patchindex as pi
from patchindex.study.metrics import pearson_r, r2

LOCALITY = {"cifar": "cifar10-resnet-circular", "small": "fashion-mnist-resnet-zeros"}


def compare(machines: dict[str, pi.ScoreMachine], n: int, repeats: int, truth: str | None) -> None:
    """Draw the same images with each, in turn, and print the seconds and how far they are from the truth."""
    times: dict[str, list[float]] = {name: [] for name in machines}
    drawn: dict[str, torch.Tensor] = {}
    for machine in machines.values():
        pi.sample(machine, n=1, seed=9)  # opens scales, loads kernels
    for _ in range(repeats):
        for name, machine in machines.items():
            start = time.perf_counter()
            drawn[name] = pi.sample(machine, n=n, seed=0).images
            times[name].append((time.perf_counter() - start) / n)
    rows: list[dict[str, Any]] = []
    for name in machines:
        row: dict[str, Any] = {"way": name, "s an image": median(times[name])}
        if truth is not None:
            row |= {
                "least r": float(pearson_r(drawn[name], drawn[truth]).min()),
                "least R2": float(r2(drawn[name], drawn[truth]).min()),
            }
        rows.append(row)
    print(
        table(rows, {"way": "s", "s an image": ".2f"} | dict.fromkeys(list(rows[0])[2:], ".5f")), flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--label", type=int, default=3)
    parser.add_argument("--small", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("-n", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.small is not None and args.work is None:
        parser.error("--small needs --work")
    if args.store is not None:
        store, cifar = pi.open_index(args.store), LOCALITY["cifar"]
        print(f"{store}, label {args.label}")
        compare(
            {
                "exact, label": pi.ScoreMachine(
                    store, estimator="exact", locality=cifar, label=args.label
                ),
                "auto, label": pi.ScoreMachine(store, locality=cifar, label=args.label),
            },
            args.n, args.repeats, "exact, label",
        )  # fmt: skip
        compare({"auto, all": pi.ScoreMachine(store, locality=cifar)}, args.n, args.repeats, None)
    if args.small is not None:
        for curve in (False, True):
            path = args.work / f"small{'-tuned' * curve}.zarr"
            if not path.exists():
                pi.build_index(args.small, path, locality=LOCALITY["small"])
            store = pi.tune(path) if curve else pi.open_index(path)
            print(f"{store}, {'with' if curve else 'without'} an operating curve")
            ways = {way: pi.ScoreMachine(store, estimator=way) for way in ("exact", "auto")}
            compare(ways, args.n, args.repeats, "exact")
    source = pi.open_images(args.source)
    print(f"{len(source)} images")
    ways = {
        "LS": pi.ScoreMachine(source, machine="LS", locality=LOCALITY["cifar"]),
        "IS": pi.ScoreMachine(source, machine="IS"),
    }
    compare(ways, args.n, args.repeats, None)


if __name__ == "__main__":
    main()
