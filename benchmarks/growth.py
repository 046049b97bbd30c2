r"""Time of a step against the number of training images, at a fixed tolerance.

    python benchmarks/growth.py cifar10_train.npz --work DIR --plot FILE
    python benchmarks/growth.py cifar10_train.npz --work DIR --sizes 50000 100000 200000 --scales 5 11

Builds stores of the first 6 250, 12 500, 25 000 and 50 000 images in DIR where they are missing, with the
schedule cifar10-resnet-circular. Each way estimates the 19 noisy images of the exact trajectory in
benchmarks/data with each store, in turn: `auto` several times, `exact` once. Above 50 000, the images are
followed by their mirror images and by shifted copies. With --scales, the stores have only these scales, and
only the noisy images at these scales are estimated.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import TRAJECTORY, alternate, arguments, report, store_of, write_json

import patchindex as pi

# The same near field for all stores, tuned or not.
WAYS: dict[str, dict[str, Any]] = {"auto": {"probes": 1024, "candidates": 1024}, "exact": {}}


def main() -> None:
    parser = arguments(__doc__, work=True, repeats=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[6250, 12500, 25000, 50000])
    parser.add_argument("--scales", type=int, nargs="+", help="default: the scales of the schedule")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    sizes: list[int] = args.sizes
    scales: list[int] | None = args.scales
    stores = {n: store_of(args.source, n, args.work, scales) for n in sizes}
    with np.load(TRAJECTORY) as archive:
        steps = list(zip(*(archive[name] for name in ("t", "k", "x")), strict=True))
    path = [(t, k, x) for t, k, x in steps if scales is None or k in scales]
    rows: list[dict[str, Any]] = []
    totals = {way: np.zeros(len(sizes)) for way in WAYS}
    for t, k, image in path:
        x = torch.from_numpy(image)[None]
        us = {}
        for way, options in WAYS.items():
            machines = {
                f"{n}": pi.ScoreMachine(store, estimator=way, **options) for n, store in stores.items()
            }
            times = alternate(
                {
                    n: lambda m=m, t=t, k=k, x=x: m.posterior_mean(x, float(t), k=int(k))
                    for n, m in machines.items()
                },
                args.repeats if way == "auto" else 1,
            )
            seconds = {n: times.median(n) for n in machines}
            totals[way] += list(seconds.values())
            us[way] = {n: 1e6 * s / x[0, 0].numel() for n, s in seconds.items()}
        ratios = {f"x{b}": us["auto"][b] / us["auto"][a] for a, b in pairwise(us["auto"])}
        rows.append({"t": float(t), "k": int(k)} | us["auto"] | ratios)
    forms = {"t": ".2f", "k": "d"} | dict.fromkeys(map(str, sizes), ".0f")
    heading = "auto: microseconds per pixel, and ratio to half as many images"
    report(rows, forms | {f"x{n}": ".2f" for n in sizes[1:]}, heading)
    for way, seconds in totals.items():
        growth = ", ".join(f"{b / a:.2f}" for a, b in pairwise(seconds))
        print(f"{way}: {len(path)} steps {', '.join(f'{s:.1f}' for s in seconds)} s; growth {growth}")
    write_json(args.json, sizes=sizes, rows=rows, seconds={w: s.tolist() for w, s in totals.items()})
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
