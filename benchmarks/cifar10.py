r"""Estimators on a store of all of CIFAR-10, against the exact steps and images in benchmarks/data.

    python benchmarks/cifar10.py cifar10_train.npz --work DIR --parts steps --ways exact auto
    python benchmarks/cifar10.py cifar10_train.npz --work DIR --parts images --plot FILE \
        --ways exact auto auto:tolerance=0.02 auto:tolerance=0.04 topk

Builds a store of all images in DIR where it is missing, and measures its operating curves. A way is an
estimator with its options, as in `patchindex sample --estimator`. Two tables. `steps`: each step of the exact
trajectory of seed 0, where every way sees the same noisy image. `images`: the images that each way draws by
itself from the noise of seeds 0 to 3, four at once. `exact` draws the image of seed 0 alone, as the first way
of each round. `exact / it` divides the seconds per image of `exact` by the seconds per image of the way, and
is the median over rounds. The plot has the error of the images over the seconds per image.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import FINALS, LOCALITY, TRAJECTORY, alternate, arguments, report, store_of, write_json
from matplotlib.figure import Figure

import patchindex as pi
from patchindex.estimators import parse_estimator
from patchindex.study.metrics import accuracy, pearson_r, r2, rmse

STEPS = 20


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


def images(machines: dict[str, pi.ScoreMachine], repeats: int) -> list[dict[str, Any]]:
    """Draw with each way from the kept noise, time the ways in turn, and compare with the exact images."""
    rows: list[dict[str, Any]] = []
    ways = sorted(machines, key=lambda way: way != "exact")
    with np.load(FINALS) as archive:
        seeds = archive["seeds"].tolist()
        noise, exact = (torch.from_numpy(archive[name]) for name in ("x_T", "images"))
    n = {way: 1 if way == "exact" else len(seeds) for way in ways}
    draw = {way: partial(pi.sample, machines[way], x_T=noise[: n[way]], steps=STEPS) for way in ways}
    # One step loads the exact kernel; all steps open the scales, and compare lists with their checksums.
    short = {way: 2 if way == "exact" else STEPS for way in ways}
    warm = {way: partial(pi.sample, machines[way], x_T=noise[:1], steps=short[way]) for way in ways}
    times = alternate(draw, repeats, warm)
    for way in ways:
        drawn = times.results[way].images
        measures = {"pearson r": pearson_r, "R2": r2, "rmse": rmse}
        found = {name: measure(drawn, exact[: n[way]]).tolist() for name, measure in measures.items()}
        for i, seed in enumerate(seeds[: n[way]]):
            row = {"way": way, "seed": seed, "s per image": times.median(way) / n[way]}
            if "exact" in machines:
                row["exact / it"] = times.ratio("exact", way) * n[way]  # `exact` draws one image
            rows.append(row | {name: each[i] for name, each in found.items()})
    forms = {"way": "s", "seed": "d", "s per image": ".1f", "exact / it": ".1f"}
    report(rows, forms | {"pearson r": ".5f", "R2": ".5f", "rmse": ".4f"})
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the median error of the images of each way over the seconds of an image."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    ways = list(dict.fromkeys(row["way"] for row in rows))
    mine = {way: [row for row in rows if row["way"] == way] for way in ways}
    points = {
        way: (each[0]["s per image"], float(np.median([row["rmse"] for row in each])), each)
        for way, each in mine.items()
    }
    if "exact" in points:
        seconds = points.pop("exact")[0]
        axes.axvline(seconds, color="0.5", linestyle="--")
        label = f"exact: {seconds:.0f} s, no error "
        axes.text(seconds, 0.5, label, transform=axes.get_xaxis_transform(), ha="right", va="center")
    tolerances = {way: parse_estimator(way)[1].get("tolerance", 0.01) for way in points if way[:4] == "auto"}
    curve = sorted(tolerances, key=lambda way: points[way][0])
    axes.plot([points[way][0] for way in curve], [points[way][1] for way in curve], "o-")
    for way in points.keys() - curve:
        axes.plot([points[way][0]], [points[way][1]], "s")
    # Neighbours on the curve have their names on different sides; the slowest has room on its left.
    below = set(curve[::-2])
    for way, (seconds, error, each) in points.items():
        r = min(row["pearson r"] for row in each)
        name = f"tolerance {tolerances[way]:g}" if way in tolerances else way
        axes.annotate(
            f"{name}: r {r:.4f}" if r > 0.99 else f"{name}: r {r:.2f}",
            (seconds, error),
            xytext=(-6, -4) if way in below else (6, 4),
            textcoords="offset points",
            ha="right" if way in below else "left",
            va="top" if way in below else "bottom",
        )
    axes.margins(y=0.15)
    axes.set_xlim(left=min(seconds for seconds, _, _ in points.values()) / 5)  # room for names
    axes.set(xscale="log", yscale="log", xlabel="seconds per image", ylabel="rms error of the image")
    axes.grid(visible=True, which="both", alpha=0.25)
    figure.savefig(path, dpi=144)
    print(f"plot: {path}")


PARTS = ("steps", "images")


def main() -> None:
    parser = arguments(__doc__, work=True, repeats=2)
    parser.add_argument("--ways", nargs="+", default=["auto"], metavar="ESTIMATOR")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the errors of the images there")
    args = parser.parse_args()
    store = pi.tune(store_of(args.source, 50_000, args.work).path)
    print(f"{store}, {torch.get_num_threads()} threads")
    machines = {}
    for way in args.ways:
        name, options = parse_estimator(way)
        machines[way] = pi.ScoreMachine(store, locality=LOCALITY, estimator=name, **options)
    found = {}
    if "steps" in args.parts:
        found["steps"] = steps(machines)
    if "images" in args.parts:
        found["images"] = images(machines, args.repeats)
    write_json(args.json, **found)
    if args.plot and "images" in found:
        plot(found["images"], args.plot)


if __name__ == "__main__":
    main()
