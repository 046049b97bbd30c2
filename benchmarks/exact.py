r"""The exact engine against the plain way and the authors' modules; how it scales; when pixels go one by one.

    python benchmarks/exact.py cifar10_train.npz --reference CHECKOUT --json exact.json

Ways are timed in turn, in one process; figures are medians of `--repeats` rounds and ratios medians of the
rounds' ratios. Queries are other images of the file with the noise of time t. Parts:

ELS, ELS-wrapped, bbELS, LS
           k in 3, 7, 11, 17 and t in 0.2, 0.6, 0.9, alone and as a batch of 8
scaling    in N, C, batch and threads
pixels     some pixels of an image against all pixels, by both engines
image      the time of an image of all N images, extrapolated from a slice, step by step of the schedule
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plain_scan
import reference
import torch
from common import alternate, arguments, exact_mean, noisy, report, some_pixels, write_json

import patchindex as pi
from patchindex.exact import load_kernel
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.schedules import LocalitySchedule, cosine

SCALES, TIMES = (3, 7, 11, 17), (0.2, 0.6, 0.9)
AGREEMENT = 1e-3  # ways that differ by more do not compute the same


class Case:
    """Training images and noisy queries; every way to their posterior mean."""

    def __init__(self, images: np.ndarray, others: np.ndarray, machine: str, k: int, t: float) -> None:
        self.k, self.t, self.beta = k, t, cosine(t)
        self.a = (1 - self.beta) ** 0.5
        name, _, wrapped = machine.partition("-")
        self.geometry = Geometry.of(name, k, images.shape[1:3], wrapped or "valid")
        self.images, self.training = torch.from_numpy(images), TrainingImages(images)
        self.x = noisy(others, t)
        compared = [np.diff(axis.ranges).sum() for axis in (self.geometry.y, self.geometry.x)]
        self.pairs = len(images) * int(compared[0]) * int(compared[1])

    def ours(self, batch: int = 1, **settings: Any) -> torch.Tensor:
        """Scan with the package."""
        mean = exact_mean(self.training, self.geometry, self.x[:batch], self.beta, **settings)
        return mean.movedim(-1, 1)

    def plain(self) -> torch.Tensor:
        """Unfold and multiply."""
        return plain_scan.posterior_mean(self.images, self.x[:1], self.geometry, self.a, self.beta)

    def attention(self) -> torch.Tensor:
        """Ask torch's fused attention."""
        return plain_scan.attention(self.images, self.x[:1], self.geometry, self.a, self.beta)

    def authors(self, module: reference.Reference) -> torch.Tensor:
        """Ask the authors' module."""
        return module.posterior_mean(self.x[:1], self.t, self.k, self.a, self.beta)


def compare(case: Case, module: reference.Reference | None, repeats: int) -> dict[str, Any]:
    """Time all ways for one case, and say by how much their results differ."""
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "ours": case.ours,
        "eight": lambda: case.ours(8),
        "plain": case.plain,
    }
    if case.geometry.n_classes == 1:
        ways["attention"] = case.attention
    if module is not None:
        ways["authors"] = lambda: case.authors(module)
    times = alternate(ways, repeats)
    ours = times.results["ours"]
    off = {
        name: float((times.results[name] - ours).abs().max()) for name in ("plain", "authors") if name in ways
    }
    if max(off.values()) > AGREEMENT:
        raise SystemExit(f"k = {case.k}, t = {case.t}: results differ, {off}")
    return {
        "k": case.k,
        "t": case.t,
        "ms": 1e3 * times.median("ours"),
        "ns per pair": 1e9 * times.median("ours") / case.pairs,
        "ms in 8": 1e3 * times.median("eight") / 8,
        "in 8 / alone": times.ratio("eight", "ours") / 8,
        "plain / ours": times.ratio("plain", "ours"),
        "attention / ours": times.ratio("attention", "ours") if "attention" in ways else None,
        "authors / ours": times.ratio("authors", "ours") if module else None,
        "off plain": off["plain"],
        "off authors": off.get("authors"),
    }


COLUMNS = {"k": "d", "t": ".1f", "ms": ".1f", "ns per pair": ".3f", "ms in 8": ".1f", "in 8 / alone": ".2f"}
COLUMNS |= {"plain / ours": ".1f", "attention / ours": ".1f", "authors / ours": ".0f"}
COLUMNS |= {"off plain": ".0e", "off authors": ".0e"}


def machine(args: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """Compare all ways for one machine."""
    module = reference.load(args.reference) if args.reference and name in reference.CLASSES else None
    theirs = reference.Reference(module, name, args.images) if module else None
    rows = [
        compare(Case(args.images, args.others, name, k, t), theirs, args.repeats)
        for k in SCALES
        for t in TIMES
    ]
    report(rows, COLUMNS, name)
    return rows


def scaling(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One factor at a time, from 256 images, 3 channels, one query and all threads, at k = 7 and t = 0.6."""
    rows = []

    def add(factor: str, value: int, case: Case, batch: int = 1) -> None:
        seconds = alternate({"ours": lambda: case.ours(batch)}, args.repeats).median("ours") / batch
        ms, ns = 1e3 * seconds, 1e9 * seconds / case.pairs
        rows.append({"factor": factor, "value": value, "ms": ms, "ns per pair": ns})

    for n in (64, 256, 1024, 4096):
        add("images", n, Case(args.everything[:n], args.others, "ELS", 7, 0.6))
    for channels in (1, 3):
        some = (images[..., :channels] for images in (args.images, args.others))
        add("channels", channels, Case(*some, "ELS", 7, 0.6))
    case = Case(args.images, args.others, "ELS", 7, 0.6)
    for batch in (1, 2, 4, 8, 16, 32):
        add("batch", batch, case, batch)
    all_threads = torch.get_num_threads()
    for threads in range(1, all_threads + 1):
        torch.set_num_threads(threads)
        add("threads", threads, case)
    torch.set_num_threads(all_threads)
    forms = {"factor": "s", "value": "d", "ms": ".1f", "ns per pair": ".3f"}
    report(rows, forms, "scaling (k = 7, t = 0.6)")
    return rows


def pixels(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time some random pixels against all pixels: a share above 1 means that the engine chose badly."""
    rows = []
    counts = (8, 64, 512)
    for dtype, limit in ((torch.float32, args.limit), (torch.float64, 32)):
        for name in ("ELS", "bbELS"):
            for k in (3, 17):
                case = Case(args.images[:limit], args.others, name, k, 0.6)
                ways = {
                    f"{n}": partial(
                        exact_mean, case.training, case.geometry, case.x[:1], case.beta,
                        pixels=[some_pixels(case.x, n)], dtype=dtype,
                    )
                    for n in counts
                }  # fmt: skip
                times = alternate({"all": partial(case.ours, dtype=dtype), **ways}, args.repeats)
                row = {"engine": "kernel" if dtype == torch.float32 else "torch", "machine": name, "k": k}
                row |= {"ms of all": 1e3 * times.median("all")}
                rows.append(row | {way: times.ratio(way, "all") for way in ways})
    forms = {"engine": "s", "machine": "s", "k": "d", "ms of all": ".1f"}
    report(rows, forms | dict.fromkeys(map(str, counts), ".2f"), "time of so many pixels / time of all")
    return rows


def image(args: argparse.Namespace) -> dict[str, float]:
    """Sum a slice's times over the steps of the schedule, times N over the slice's images."""
    schedule = LocalitySchedule.of(args.locality)
    module = reference.load(args.reference) if args.reference else None
    theirs = reference.Reference(module, "ELS", args.images) if module else None
    total = {"ours": 0.0, "plain": 0.0, "authors": 0.0}
    for i in range(args.steps - 1, 0, -1):
        t = i / args.steps
        case = Case(args.images, args.others, "ELS", schedule.k(cosine(t)), t)
        ways: dict[str, Callable[[], Any]] = {"ours": case.ours, "plain": case.plain}
        if theirs is not None:
            ways["authors"] = lambda case=case: case.authors(theirs)
        times = alternate(ways, args.repeats)
        for name in ways:
            total[name] += times.median(name)
    factor = len(args.everything) / len(args.images)
    found = {name: seconds * factor for name, seconds in total.items() if seconds}
    print(
        f"\nan image of {len(args.everything)} images, {args.steps - 1} steps of {args.locality}, "
        f"extrapolated from {len(args.images)}: "
        + ", ".join(f"{name} {s:.0f} s ({s / found['ours']:.0f})" for name, s in found.items())
    )
    return found


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    **{name: partial(machine, name=name) for name in ("ELS", "ELS-wrapped", "bbELS", "LS")},
    "scaling": scaling,
    "pixels": pixels,
    "image": image,
}


def main() -> None:
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--reference", type=Path, help="a checkout of the authors' repository")
    parser.add_argument("--limit", type=int, default=256, help="training images (default 256)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--locality", default="cifar10-resnet-circular", help="for the part `image`")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.everything = pi.open_images(args.source)[:]
    args.images, args.others = args.everything[: args.limit], args.everything[-32:]
    load_kernel()
    print(
        f"{args.limit} images {args.images.shape[1:]}, {torch.get_num_threads()} threads, "
        f"median of {args.repeats}"
    )
    write_json(args.json, **{part: PARTS[part](args) for part in args.parts})


if __name__ == "__main__":
    main()
