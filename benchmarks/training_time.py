r"""r of denoisers with a network, against the training time of the network.

    for n in 500 1000 2000 4000 8000; do
        patchindex train mnist_train.npz --resize 32 -o run --steps $n --resume ...; cp -r run run-$n
    done
    python benchmarks/training_time.py STORE --runs run-500 run-1000 ... --locality SCHEDULE --plot FILE

The runs are of one network without labels, at several steps of its training. Each network and each denoiser
draws images from the same noise: denoisers once, in 20 steps; each network in 150 steps. Prints the median r
and its bootstrap interval. Training takes the minutes of all CPU cores together.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from common import arguments, report, write_json
from matplotlib.figure import Figure

import patchindex as pi
from patchindex.networks import Network, open_run
from patchindex.study.bootstrap import median_interval
from patchindex.study.noised import correlation

STEPS, NETWORK_STEPS = 20, 150


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, metavar="RUN")
    parser.add_argument("--locality", required=True, metavar="SCHEDULE")
    parser.add_argument("--machines", nargs="+", default=["bbELS", "LS", "IS", "wiener"])
    parser.add_argument("-n", type=int, default=20)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    networks = {path.name: open_run(path) for path in args.runs}
    if any(network.labels is not None for network in networks.values()):
        parser.error("the networks must have no labels")
    drawn = {name: draw(name, args) for name in args.machines}
    rows = [row(name, network, drawn, args.n) for name, network in networks.items()]
    rows.sort(key=lambda found: found["steps"])
    formats = {"steps": ",", "core minutes": ".0f", "loss": ".4f"} | dict.fromkeys(drawn, "")
    report(
        [
            found | {name: "{:.3f} [{:.3f}, {:.3f}]".format(*found["r"][name]) for name in drawn}
            for found in rows
        ],
        formats,
    )
    if args.json:
        write_json(args.json, locality=args.locality, n=args.n, rows=rows)
    if args.plot:
        plot(rows, list(drawn), args.plot)


def draw(name: str, args: Any) -> Any:
    """Draw images with a denoiser: its own machine takes the store's estimator, others are exact."""
    options = {} if name in ("IS", "wiener") else {"locality": args.locality}
    start = time.perf_counter()
    found = pi.sample(pi.denoiser(name, args.source, **options), args.n, STEPS, seed=0).images
    print(f"{name}: {(time.perf_counter() - start) / args.n:.1f} s an image", flush=True)
    return found


def row(name: str, network: Network, drawn: dict[str, Any], n: int) -> dict[str, Any]:
    """Draw images with a network, and compare the images of the denoisers with them."""
    images = pi.sample(network, n, NETWORK_STEPS, seed=0).images
    run = network.run or {}
    return {
        "run": name,
        "steps": run["step"],
        "core minutes": run["cpu_seconds"] / 60,
        "loss": run["loss"],
        "r": {
            key: median_interval(correlation(found, images).numpy(), seed=0) for key, found in drawn.items()
        },
    }


def plot(rows: list[dict[str, Any]], names: list[str], path: Path) -> None:
    """Draw r against core minutes, a line per denoiser."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    minutes = [found["core minutes"] for found in rows]
    for name in names:
        middle, low, high = zip(*(found["r"][name] for found in rows), strict=True)
        line = axes.plot(minutes, middle, marker="o", label=name)[0]
        axes.fill_between(minutes, low, high, color=line.get_color(), alpha=0.15)
    axes.set(
        xscale="log", xlabel="training time of the network (core minutes)", ylabel="median r with the network"
    )
    axes.set_xticks(minutes, [f"{each:.0f}" for each in minutes])
    axes.minorticks_off()
    axes.set_ylim(top=1)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
