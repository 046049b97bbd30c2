r"""Counts of limbs, holes and strokes in drawn images, against the locality at some times of sampling.

    python benchmarks/limbs.py -o DIR --machines LS,bbELS --images 300 -n 64
    python benchmarks/limbs.py -o DIR --mnist mnist_train.npz --machines LS --images 1000 -n 128

Without --mnist the training images are drawn figures with four limbs; with it, digits 8 (two holes) and 0
(one hole). Four experiments vary a published schedule (BASE), from the same noise:

    late       k for t < .3
    early      k for t >= .3
    see first  patches as large as the image for t >= t*, BASE below
    see last   BASE for t >= t*, patches as large as the image below

Each experiment writes a .csv, a .json, a .png (counts) and an -images.png. Pictures that join experiments:
-switch.png the last two, -both.png and -both-images.png some rows of the first two.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, report, write_json
from matplotlib.figure import Figure
from torch import Tensor

import patchindex as pi
from patchindex.denoisers import Call, Denoiser
from patchindex.estimators import Estimate
from patchindex.images.by_label import TrainingImages
from patchindex.study import originality
from patchindex.study.counters import count_holes, count_limbs, count_strokes, draw_figures
from patchindex.study.limbs import REFERENCE, FeatureCounts, count_features, replace_scales

BASE = [3, 3, 5, 5, 5, 7, 7, 7, 9, 9, 11, 11, 11, 11, 13, 15, 15, 15, 15, 15]  # MNIST, ResNet with zeros
PUBLISHED = "published schedule"
LATE = 0.3  # times below are late
LATE_SCALES, EARLY_SCALES = (1, 3, 5, 7, 9, 11, 15, 21, 31), (3, 5, 9, 13, 17, 21, 25, 31)
WHOLE = 31
TIMES = [round(0.1 * i, 1) for i in range(1, 10)]
COLUMNS = {
    "name": "s",
    "right": ".3f",
    "right_low": ".3f",
    "right_high": ".3f",
    "fewer": ".3f",
    "more": ".3f",
}

# By experiment: the names of its schedules, and the schedules.
EXPERIMENTS: dict[str, dict[str, list[int]]] = {
    "late": {f"k = {k} for t < {LATE}": replace_scales(BASE, k, high=LATE) for k in LATE_SCALES},
    "early": {f"k = {k} for t ≥ {LATE}": replace_scales(BASE, k, low=LATE) for k in EARLY_SCALES},
    "see-first": {f"whole for t ≥ {t}": replace_scales(BASE, WHOLE, low=t) for t in TIMES},
    "see-last": {f"whole for t < {t}": replace_scales(BASE, WHOLE, high=t) for t in TIMES},
}
# The rows of -both.png.
BOTH = (
    *(REFERENCE, PUBLISHED),
    *(f"k = {k} for t < {LATE}" for k in (1, 3, 9, 15, 21, 31)),
    *(f"k = {k} for t ≥ {LATE}" for k in (3, 9, 17, 21, 31)),
)


class Shared(Denoiser):
    """A machine that shares the first steps of a trajectory with machines that agree on their scales."""

    def __init__(self, machine: pi.ScoreMachine, known: dict[Any, tuple[Tensor, Estimate]]) -> None:
        super().__init__(machine.shape)
        self._machine, self._known = machine, known

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the machine."""
        return self._machine.settings

    def scale_at(self, t: float) -> int | None:
        """Return the scale of the machine."""
        return self._machine.scale_at(t)

    def _estimate(self, x: Tensor, beta: float, call: Call) -> Estimate:
        key = (call.image_ids[0], call.t, self.scale_at(call.t))
        found = self._known.get(key)
        if found is None or not torch.equal(found[0], x):
            found = self._known[key] = (x, self._machine.posterior_mean(x, call.t))
        return found[1]


def draw_switch(path: Path, studies: dict[str, FeatureCounts]) -> None:
    """Draw the share of right counts against the time at which whole images are seen, or no longer seen."""
    axes = (figure := Figure(figsize=(7, 4), layout="constrained")).subplots()
    for name, label, marker in (
        ("see-first", "whole images for t ≥ t*, then local", "o"),
        ("see-last", "local for t ≥ t*, then whole images", "s"),
    ):
        rows = [row for row in studies[name].summary() if row["name"] not in (REFERENCE, PUBLISHED)]
        right, low, high = (np.array([row[c] for row in rows]) for c in ("right", "right_low", "right_high"))
        axes.errorbar(TIMES, right, yerr=[right - low, high - right], marker=marker, capsize=3, label=label)
    axes.set(
        xlabel="t*   (sampling runs from t = 1 to t = 0)", ylabel="share of right counts", ylim=(0, 1.03)
    )
    axes.invert_xaxis()
    axes.legend()
    figure.savefig(path, dpi=100)


def join(studies: dict[str, FeatureCounts]) -> FeatureCounts:
    """Return the rows `BOTH` of the experiments on late and early locality as one study."""
    late, early = studies["late"], studies["early"]
    images = {**early.images, **late.images}
    names = [name for name in BOTH if name in images]
    rows = {(row["name"], row["image"]): row for row in (*early.rows, *late.rows)}
    chosen = [row for name in names for (its_name, _), row in rows.items() if its_name == name]
    return FeatureCounts(chosen, {name: images[name] for name in names}, late.settings)


def report_copies(
    studies: dict[str, FeatureCounts], images: np.ndarray, heading: str
) -> list[dict[str, Any]]:
    """Print how far the images of late and early locality are from the training images."""
    rows = []
    for study in (studies["late"], studies["early"]):
        for row in study.summary():
            if row["name"] != REFERENCE and row["name"] not in [each["name"] for each in rows]:
                found = originality(study.images[row["name"]], images, shift=2).summary()
                copies, far = found["copies"] / found["images"], found["relative_shifted"]
                rows.append({"name": row["name"], "right": row["right"], "copies": copies, "distance": far})
    report(rows, {"name": "s", "right": ".2f", "copies": ".2f", "distance": ".2f"}, heading)
    return rows


def main() -> None:
    parser = arguments(__doc__, source=False)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--machines", default="LS")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--experiments", default=",".join(EXPERIMENTS))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    sets: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}
    if args.mnist is None:
        sets["figures"] = draw_figures(args.images), {"limbs": count_limbs}
    else:
        digits = TrainingImages(pi.open_images(args.mnist, resize=32))
        for digit in (8, 0):
            lo, hi = digits.range_of(digit)
            some = digits.read(lo, min(hi, lo + args.images))
            sets[f"digit-{digit}"] = some, {"holes": count_holes, "strokes": count_strokes}
    found = []
    for kind in args.machines.split(","):
        for set_name, (images, counters) in sets.items():
            studies = run(args, kind, set_name, images, counters, found)
            if {"late", "early"} <= studies.keys():
                copies = report_copies(studies, images, f"{kind}, {set_name}: originality")
                found.append({"name": f"{kind}-{set_name}-originality", "rows": copies})
                both = join(studies)
                both.plot().savefig(args.output / f"{kind}-{set_name}-both.png", dpi=90)
                both.plot_images(10).savefig(args.output / f"{kind}-{set_name}-both-images.png", dpi=72)
            if {"see-first", "see-last"} <= studies.keys():
                draw_switch(args.output / f"{kind}-{set_name}-switch.png", studies)
    write_json(args.json, found=found)


def run(
    args: Any, kind: str, set_name: str, images: np.ndarray, counters: dict[str, Any], found: list[Any]
) -> dict[str, FeatureCounts]:
    """Run the experiments of one machine on one set; return them by name, with the first counter."""
    known: dict[Any, tuple[Tensor, Estimate]] = {}
    studies = {}
    windows = "wrapped" if kind == "ELS" else None  # patches may be larger than half of the image
    for experiment in args.experiments.split(","):
        schedules = {PUBLISHED: BASE, **EXPERIMENTS[experiment]}
        machines = {
            name: Shared(pi.ScoreMachine(images, machine=kind, train_windows=windows, locality=scales), known)
            for name, scales in schedules.items()
        }
        start = time.perf_counter()
        first = count_features(machines, next(iter(counters.values())), args.n, reference=images)
        seconds = time.perf_counter() - start
        for feature, counter in counters.items():
            study = first.recount(counter)
            name = f"{kind}-{set_name}-{feature}-{experiment}"
            study.to_csv(args.output / f"{name}.csv")
            study.to_json(args.output / f"{name}.json")
            study.plot().savefig(args.output / f"{name}.png", dpi=90)
            study.plot_images(10).savefig(args.output / f"{name}-images.png", dpi=80)
            report(study.summary(), COLUMNS, f"{name}: {len(images)} images, n = {args.n}, {seconds:.0f} s")
            found.append({"name": name, "seconds": seconds, "rows": study.summary()})
        studies[experiment] = first
    return studies


if __name__ == "__main__":
    main()
