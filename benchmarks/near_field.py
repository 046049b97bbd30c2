r"""Time and error of `auto` with near fields of several sizes: of single steps, and of final images.

    python benchmarks/exact_images.py IMAGES --locality SCHEDULE --seeds 0 1 -o DIR --name NAME
    python benchmarks/near_field.py STORE --exact DIR/NAME --near 1024,1024 auto --tolerances .04
    python benchmarks/near_field.py STORE --exact DIR/NAME --near 1024,1024 512,512 256,256 --tolerances .01

STORE has the same images and schedule as the exact images. A near field is a number of probes and candidates.
`auto` leaves both to the operating curve of the store, or without one to the tolerance. For each tolerance,
the script estimates each step of the exact trajectory by itself; then it draws all images at once. It tries
all near fields in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alternate, arguments, report, write_json
from torch import Tensor

import patchindex as pi
from patchindex.study import pearson_r, r2

FREE = "auto"
ERRORS = {"error": ".2f", "s.e.": ".2f", "ratio": ".2f", "worst": ".1f"}
STEP = {"t": ".2f", "k": "d", "near": "", "s": ".2f"} | ERRORS
IMAGE = {"near": "", "s": ".1f", "r": ".5f", "R2": ".5f"}


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument(
        "--exact", type=Path, required=True, metavar="PREFIX", help="of the files of exact_images.py"
    )
    parser.add_argument("--near", nargs="+", default=["1024,1024", FREE], metavar="PROBES,CANDIDATES|auto")
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.04])
    parser.add_argument("--no-steps", action="store_true", help="final images only")
    args = parser.parse_args()
    store = pi.open_index(args.source)
    with np.load(f"{args.exact}_trajectory.npz") as archive:
        steps = list(zip(*(archive[name] for name in ("t", "k", "x", "mean")), strict=True))
    with np.load(f"{args.exact}_finals.npz") as archive:
        x_T, finals = archive["x_T"], torch.from_numpy(archive["images"])
    found = []
    for tolerance in args.tolerances:
        machines = {near: machine_of(store, near, tolerance) for near in args.near}
        rows = []
        for step in [] if args.no_steps else steps:
            rows += rows_of_step(machines, step, tolerance, args.repeats)
        if rows:
            report(
                rows,
                STEP,
                f"steps at a tolerance of {tolerance}; errors, root mean square and worst, in tolerances",
            )
            totals = {near: sum(row["s"] for row in rows if row["near"] == near) for near in machines}
            print("all steps:", ", ".join(f"{near} {seconds:.1f} s" for near, seconds in totals.items()))
        images = rows_of_images(machines, x_T, finals, len(steps) + 1, args.repeats)
        report(images, IMAGE, f"final images at a tolerance of {tolerance}; r and R2 of the worst")
        found.append({"tolerance": tolerance, "steps": rows, "images": images})
    write_json(args.json, found=found)


def machine_of(store: pi.PatchIndex, near: str, tolerance: float) -> pi.ScoreMachine:
    """Return a score machine whose `auto` has near fields of this size."""
    sizes: dict[str, Any] = {}
    if near != FREE:
        sizes = dict(zip(("probes", "candidates"), map(int, near.split(",")), strict=True))
    return pi.ScoreMachine(store, estimator="auto", tolerance=tolerance, **sizes)


def rows_of_step(
    machines: dict[str, pi.ScoreMachine], step: tuple[Any, ...], tolerance: float, repeats: int
) -> list[dict[str, Any]]:
    """Estimate one noisy image with each near field in turn: seconds, and errors in tolerances."""
    t, k, x, exact = step
    noisy = torch.from_numpy(x)[None]
    calls: dict[str, Callable[[], pi.Estimate]] = {
        near: partial(machine.posterior_mean, noisy, float(t), k=int(k)) for near, machine in machines.items()
    }
    times, rows = alternate(calls, repeats), []
    for near, estimate in times.results.items():
        # Of each pixel, root mean square over channels.
        errors = (estimate.mean[0] - torch.from_numpy(exact)).square().mean(0).sqrt()
        error = float(errors.square().mean().sqrt())
        stderr = float(estimate.stderr.square().mean().sqrt())
        row = {"t": float(t), "k": int(k), "near": near, "s": times.median(near)}
        row |= {"error": error / tolerance, "s.e.": stderr / tolerance, "ratio": error / stderr}
        rows.append(row | {"worst": float(errors.max()) / tolerance})
    return rows


def rows_of_images(
    machines: dict[str, pi.ScoreMachine], x_T: np.ndarray, exact: Tensor, grid: int, repeats: int
) -> list[dict[str, Any]]:
    """Draw all images at once with each near field in turn: seconds per image, and agreement."""
    calls: dict[str, Callable[[], Tensor]] = {
        near: partial(lambda machine: pi.sample(machine, x_T=x_T, steps=grid).images, machine)
        for near, machine in machines.items()
    }
    times = alternate(calls, repeats)
    return [
        {
            "near": near,
            "s": times.median(near) / len(x_T),
            "r": float(pearson_r(images, exact).min()),
            "R2": float(r2(images, exact).min()),
        }
        for near, images in times.results.items()
    ]


if __name__ == "__main__":
    main()
