r"""Seconds per image of machines and labels: `exact` alone for LS and IS, `auto` against `exact` elsewhere.

    python benchmarks/machines.py cifar10_train.npz --store STORE --small data/fashion_mnist_6k.npz --work DIR

LS and IS on all images; one label of a store against all labels; and a small data set, of which stores with
and without an operating curve are built in DIR where they are missing.
"""

from __future__ import annotations

from pathlib import Path

from common import alternate, arguments, report, write_json

import patchindex as pi
from patchindex.study.metrics import pearson_r, r2

CIFAR, SMALL = "cifar10-resnet-circular", "fashion-mnist-resnet-zeros"


def main() -> None:
    parser = arguments(__doc__, work=True, repeats=3)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--label", type=int, default=3)
    parser.add_argument("--small", type=Path)
    parser.add_argument("-n", type=int, default=2)
    args = parser.parse_args()
    found = {}

    def compare(name: str, machines: dict[str, pi.ScoreMachine], truth: str | None = None) -> None:
        """Draw the same images with each machine in turn; compare them with the images of `truth`."""
        for machine in machines.values():
            pi.sample(machine, n=1, seed=9)  # opens scales, loads kernels
        times = alternate(
            {way: lambda m=m: pi.sample(m, n=args.n).images for way, m in machines.items()}, args.repeats
        )
        rows = [{"way": way, "s per image": times.median(way) / args.n} for way in machines]
        for row in rows if truth is not None else ():
            for heading, measure in (("least r", pearson_r), ("least R2", r2)):
                row[heading] = float(measure(times.results[row["way"]], times.results[truth]).min())
        report(rows, {"way": "s", "s per image": ".2f", "least r": ".5f", "least R2": ".5f"}, name)
        found[name] = rows

    if args.store is not None:
        store = pi.open_index(args.store)
        for label in (args.label, None):
            ways = ("exact", "auto") if label is not None else ("auto",)
            compare(
                f"{store}, label {'any' if label is None else label}",
                {w: pi.ScoreMachine(store, estimator=w, locality=CIFAR, label=label) for w in ways},
                "exact" if label is not None else None,
            )
    if args.small is not None:
        for curve in ("without", "with"):
            path = args.work / f"small-{curve}-curve.zarr"
            if not path.exists():
                pi.build_index(args.small, path, locality=SMALL)
            store = pi.tune(path) if curve == "with" else pi.open_index(path)
            ways = {way: pi.ScoreMachine(store, estimator=way) for way in ("exact", "auto")}
            compare(f"{store}, {curve} an operating curve", ways, "exact")
    source = pi.open_images(args.source)
    ways = {
        "LS": pi.ScoreMachine(source, machine="LS", locality=CIFAR),
        "IS": pi.ScoreMachine(source, machine="IS"),
    }
    compare(f"{len(source)} images", ways)
    write_json(args.json, found=found)


if __name__ == "__main__":
    main()
