r"""Estimators that draw, against the exact posterior mean: error, standard error and time of one step.

    python benchmarks/estimators.py cifar10_train.npz --limit 12500 --steps 8:7 10:7 --work DIR

A store of the scales asked for is built in `--work` and kept there. At each step of the paper's grid
(`STEP:K`, t = STEP / 20) other images of the file get the noise of that time; budgets are `BLOCKSxSAMPLES`
for `priority`, and `auto` goes to its tolerance. Times are of one process, each after a first call, and by
what they were spent on where that is known: lists weighed, codes scanned, patches evaluated, summed over
threads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accuracy import compared
from timing import table

import patchindex as pi
from patchindex.estimators import priority
from patchindex.schedules import cosine

KERNELS = {"choose_blocks": "lists", "scan_blocks": "codes", "sample_sums": "patches"}
spent: dict[str, float] = {}


def watch(name: str) -> None:
    """Add up the time that a kernel takes, on all threads."""
    kernel: Callable[..., None] = getattr(priority, name)

    def watched(*args: Any) -> None:
        start = time.perf_counter()
        kernel(*args)
        spent[KERNELS[name]] = spent.get(KERNELS[name], 0.0) + time.perf_counter() - start

    setattr(priority, name, watched)


def measured(
    machine: pi.ScoreMachine, x: torch.Tensor, t: float, k: int, exact: torch.Tensor
) -> dict[str, Any]:
    """Time an estimator, and compare it with the exact mean."""
    machine.posterior_mean(x[:1], t, k=k, seed=1)
    spent.clear()
    start = time.perf_counter()
    e = machine.posterior_mean(x, t, k=k)
    seconds = time.perf_counter() - start
    by_kernel = {f"us {name}": 1e6 * spent.get(name, 0.0) / e.stderr.numel() for name in KERNELS.values()}
    return compared(e, exact, seconds) | by_kernel


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IMAGES")
    parser.add_argument("--limit", type=int, help="training images (default: all but 64)")
    parser.add_argument("--machine", default="ELS")
    parser.add_argument("--steps", nargs="+", default=["8:7", "10:7"], metavar="STEP:K")
    parser.add_argument("--budgets", nargs="+", default=["512x1024", "1024x1024", "2048x2048"])
    parser.add_argument("--tolerance", type=float, default=0.01)
    parser.add_argument("--pca-dims", type=int)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    source = pi.open_images(args.source)
    everything = source.read(slice(None))
    n = min(args.limit or len(everything), len(everything) - 64)
    steps = [tuple(map(int, step.split(":"))) for step in args.steps]
    path = args.work / f"{args.machine}-{n}-{'-'.join(map(str, sorted({k for _, k in steps})))}.zarr"
    start = time.perf_counter()
    store = pi.build_index(
        everything[:n],
        path,
        scales=sorted({k for _, k in steps}),
        machine=args.machine,
        pca_dims=args.pca_dims,
        resume=True,
    )
    print(
        f"{store}: built or found in {time.perf_counter() - start:.1f} s, {torch.get_num_threads()} threads"
    )
    for k, found in store.info()["indexes"].items():
        total = sum(found["seconds"].values())
        print(
            f"k = {k}: {found['patches']} patches, {found['lists']} lists, {found['pca_dims']} dimensions, "
            f"{found['patches'] / total:.0f} patches a second, "
            f"{found['bytes'] / found['patches']:.1f} bytes each, "
            f"{100 * found['assignment']['nearest']:.1f} % in their nearest list"
        )
    for name in KERNELS:
        watch(name)
    x0 = torch.from_numpy(everything[-args.batch :].transpose(0, 3, 1, 2) / 127.5 - 1).float()
    noise = torch.Generator().manual_seed(0)
    rows = []
    for step, k in steps:
        t = step / 20
        beta = cosine(t)
        x = (1 - beta) ** 0.5 * x0 + beta**0.5 * torch.randn(x0.shape, generator=noise)
        start = time.perf_counter()
        exact = pi.ScoreMachine(store, estimator="exact").posterior_mean(x, t, k=k)
        common = {
            "step": step,
            "k": k,
            "ess": float(exact.ess.median()),
            "exact us": 1e6 * (time.perf_counter() - start) / exact.ess.numel(),
        }
        options: dict[str, dict[str, Any]] = {"topk 256": {"estimator": "topk"}}
        for budget in args.budgets:
            blocks, samples = map(int, budget.split("x"))
            options[budget] = {"estimator": "priority", "blocks": blocks, "samples": samples}
        options["auto"] = {"estimator": "auto", "tolerance": args.tolerance}
        for name, option in options.items():
            rows.append(
                common | {"way": name} | measured(pi.ScoreMachine(store, **option), x, t, k, exact.mean)
            )
    forms = dict.fromkeys(rows[0], ".0f") | {"step": "d", "k": "d", "way": "s"}
    forms |= dict.fromkeys(("rmse", "stderr", "max"), ".4f") | {"rmse/stderr": ".2f"}
    forms |= dict.fromkeys(("within", "captured", "exact"), ".3f")
    print(table(rows, forms))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
