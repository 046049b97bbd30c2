r"""How the time of a step grows with the number of training images, at fixed tolerance.

    python benchmarks/growth.py cifar10_train.npz --work DIR [--store STORE] --json F --plot P

Stores of the first 6 250, 12 500, 25 000 and 50 000 images are built in DIR where they are missing (the last
one may be given), with the schedule cifar10-resnet-circular. All 19 noisy images of the exact trajectory in
benchmarks/data are estimated with each, in turn, several times, of which the median counts; `exact` once.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from timing import table

import patchindex as pi

DATA = Path(__file__).parent / "data" / "cifar10_exact_trajectory.npz"
LOCALITY = "cifar10-resnet-circular"
# The same near field for all, tuned or not.
WAYS: dict[str, dict[str, Any]] = {"auto": {"probes": 1024, "candidates": 1024}, "exact": {}}


def stores(source: Path, work: Path, given: Path | None, sizes: list[int]) -> dict[int, pi.PatchIndex]:
    """Open the stores, built where they are missing."""
    found = {}
    for n in sizes:
        path = work / f"growth-{n}.zarr"
        if given is not None and n == max(sizes):
            path = given
        elif not path.exists():
            pi.build_index(pi.open_images(source, limit=n), path, locality=LOCALITY, resume=True)
        found[n] = pi.open_index(path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--store", type=Path, help="of the largest size")
    parser.add_argument("--sizes", type=int, nargs="+", default=[6250, 12500, 25000, 50000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    with np.load(DATA) as archive:
        path = list(
            zip(archive["t"].tolist(), archive["k"].tolist(), torch.from_numpy(archive["x"]), strict=True)
        )
    machines = {
        (n, way): pi.ScoreMachine(store, estimator=way, locality=LOCALITY, **options)
        for n, store in stores(args.source, args.work, args.store, args.sizes).items()
        for way, options in WAYS.items()
    }
    taken: dict[tuple[int, str, float], list[float]] = {}
    for t, k, x in path:
        for key, machine in machines.items():
            if key[1] == "auto":
                machine.posterior_mean(x[None], t, k=k, seed=1)  # opens the scale
        for repeat in range(args.repeats):
            for (n, way), machine in machines.items():
                if way == "exact" and repeat:
                    continue
                start = time.perf_counter()
                machine.posterior_mean(x[None], t, k=k)
                taken.setdefault((n, way, t), []).append(time.perf_counter() - start)
    seconds = {key: median(times) for key, times in taken.items()}
    rows: list[dict[str, Any]] = []
    for t, k, _ in path:
        times = [1e6 * seconds[n, "auto", t] / x.shape[1] / x.shape[2] for n in args.sizes]
        row: dict[str, Any] = {"t": t, "k": k} | {f"{n}": us for n, us in zip(args.sizes, times, strict=True)}
        rows.append(
            row
            | {
                f"x{b}": later / before
                for (before, later), b in zip(pairwise(times), args.sizes[1:], strict=True)
            }
        )
    forms = {"t": ".2f", "k": "d"} | {f"{n}": ".0f" for n in args.sizes}
    print("us a pixel, and times those of half as many images")
    print(table(rows, forms | {f"x{n}": ".2f" for n in args.sizes[1:]}))
    totals = {way: [sum(seconds[n, way, t] for t, _, _ in path) for n in args.sizes] for way in WAYS}
    for way in WAYS:
        growth = [f"{later / before:.2f}" for before, later in pairwise(totals[way])]
        print(f"{way}: all steps {', '.join(f'{s:.1f}' for s in totals[way])} s; growth {', '.join(growth)}")
    if args.json:
        args.json.write_text(
            json.dumps({"rows": rows, "sizes": args.sizes, "seconds": totals}, indent=2) + "\n"
        )
    if args.plot:
        draw(args.plot, args.sizes, totals)


def draw(path: Path, sizes: list[int], totals: dict[str, list[float]]) -> None:
    """Plot the time of all steps against the number of images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for way, seconds in totals.items():
        axes.plot(sizes, seconds, "o-", label=way)
    axes.set(
        xscale="log", yscale="log", xlabel="training images", ylabel="seconds an image", xticks=sizes,
        title="19 steps of CIFAR-10, tolerance 0.01",
    )  # fmt: skip
    axes.set_xticklabels(map(str, sizes))
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
