r"""Time of a step against the number of training images, at a fixed tolerance.

    python benchmarks/growth.py cifar10_train.npz --work DIR --plot FILE
    python benchmarks/growth.py cifar10_train.npz --work DIR --sizes 50000 100000 200000 --scales 5 11

Builds stores of the first 6 250, 12 500, 25 000 and 50 000 images in DIR where they are missing, with the
schedule cifar10-resnet-circular. Each way estimates the 19 noisy images of the exact trajectory in
benchmarks/data with each store, in turn: `auto` several times, `exact` once. With --sizes above 50 000, the
images are followed by themselves mirrored (100 000), upside down, and both (200 000). With --scales, the
stores have only these scales, and only the noisy images at these scales are estimated. With --near, `auto` is
measured with each of these near fields.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import TRAJECTORY, alternate, arguments, report, store_of, write_json

import patchindex as pi

EXACT = "exact"


def main() -> None:
    parser = arguments(__doc__, work=True, repeats=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[6250, 12500, 25000, 50000])
    parser.add_argument("--scales", type=int, nargs="+", help="default: the scales of the schedule")
    parser.add_argument(
        "--near", nargs="+", default=["1024,1024"], metavar="PROBES,CANDIDATES", help="near fields of `auto`"
    )
    parser.add_argument("--no-exact", action="store_true", help="only `auto`")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    sizes: list[int] = args.sizes
    scales: list[int] | None = args.scales
    # The same near fields for all stores, tuned or not.
    ways: dict[str, dict[str, Any]] = {}
    for near in args.near:
        probes, candidates = map(int, near.split(","))
        ways[f"auto {near}"] = {"estimator": "auto", "probes": probes, "candidates": candidates}
    if not args.no_exact:
        ways[EXACT] = {"estimator": EXACT}
    stores = {n: store_of(args.source, n, args.work, scales) for n in sizes}
    with np.load(TRAJECTORY) as archive:
        steps = list(zip(*(archive[name] for name in ("t", "k", "x")), strict=True))
    path = [(t, k, x) for t, k, x in steps if scales is None or k in scales]
    seconds = {way: np.empty((len(path), len(sizes))) for way in ways}
    for step, (t, k, image) in enumerate(path):
        x = torch.from_numpy(image)[None]
        for way, options in ways.items():
            calls: dict[str, Callable[[], Any]] = {
                str(n): partial(pi.ScoreMachine(store, **options).posterior_mean, x, float(t), k=int(k))
                for n, store in stores.items()
            }
            times = alternate(calls, 1 if way == EXACT else args.repeats)
            seconds[way][step] = [times.median(n) for n in calls]
        print(f"step {step + 1} of {len(path)}", file=sys.stderr, flush=True)

    forms = {"t": ".2f", "k": "d"} | dict.fromkeys(map(str, sizes), ".0f")
    forms |= {f"x{n}": ".2f" for n in sizes[1:]}
    for way, taken in seconds.items():
        rows = []
        for (t, k, image), times_of_step in zip(path, taken, strict=True):
            us = dict(zip(map(str, sizes), 1e6 * times_of_step / image[0].size, strict=True))
            rows.append({"t": float(t), "k": int(k)} | us | {f"x{b}": us[b] / us[a] for a, b in pairwise(us)})
        report(rows, forms, f"{way}: microseconds per pixel, and ratio to half as many images")
    totals = {way: taken.sum(0) for way, taken in seconds.items()}
    for way, total in totals.items():
        growth = ", ".join(f"{b / a:.2f}" for a, b in pairwise(total))
        print(f"{way}: {len(path)} steps {', '.join(f'{s:.1f}' for s in total)} s; growth {growth}")
    found = {way: taken.tolist() for way, taken in seconds.items()}  # of each step, for each size
    write_json(args.json, sizes=sizes, steps=[(float(t), int(k)) for t, k, _ in path], seconds=found)
    if args.plot:
        draw(args.plot, sizes, totals)


def draw(path: Path, sizes: list[int], totals: dict[str, np.ndarray]) -> None:
    """Plot the time of the steps together against the number of images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for way, seconds in totals.items():
        axes.plot(sizes, seconds, "o-", label=way)
    axes.set(
        xscale="log", yscale="log", xlabel="training images", ylabel="seconds per image", xticks=sizes,
        title="Steps of CIFAR-10, tolerance 0.01",
    )  # fmt: skip
    axes.set_xticklabels(map(str, sizes))
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
