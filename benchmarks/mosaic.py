r"""Mosaics of samples: sources, segments, and the shares of pixels that are centres of their nearest patch.

    python benchmarks/mosaic.py cifar10_train.npz --images 10000 --machines IS ELS -n 2
    python benchmarks/mosaic.py data/fashion_mnist_6k.npz --images 400 --machines bbELS \
        --locality fashion-mnist-resnet-zeros --first 3 -n 1 --times .05,.03,.02,.01

Each sample is drawn by DDIM on the paper's grid. `--times` replaces the last step by steps at these times.
The nearest patches are found by exact search over all patches.
"""

from __future__ import annotations

import time

from common import arguments, report, write_json

import patchindex as pi
from patchindex.sampling import draw_noise, time_grid

TOLERANCES = (0.01, 0.02, 0.05, 0.1)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--machines", nargs="+", default=["IS", "ELS"])
    parser.add_argument("--locality", default="cifar10-resnet-circular")
    parser.add_argument("--first", type=int, default=0, help="number of the first sample")
    parser.add_argument("-n", type=int, default=1)
    parser.add_argument("--times", default="", metavar="T,T,...", help="times of the last steps, descending")
    args = parser.parse_args()
    images = pi.open_images(args.source, limit=args.images)
    size = images.shape[1:3]
    locality = pi.LocalitySchedule.of(args.locality, "cosine").resized(size)
    last = [float(t) for t in args.times.split(",") if t]
    noise = draw_noise(0, args.first + args.n, (images.shape[3], *size))
    rows = []
    for name in args.machines:
        machine = pi.denoiser(name, images, locality=locality) if name != "IS" else pi.denoiser(name, images)
        grid = time_grid(20, machine.noise)
        times = [t for t in grid if t > max(last)] + [*last, 0.0] if last else grid
        for number in range(args.first, args.first + args.n):
            start = time.perf_counter()
            steps = pi.explain.redraw(machine, noise[number : number + 1], steps=times, number=number)
            drawn = time.perf_counter()
            found = pi.explain.explain_sample(machine, steps, last_only=True)
            numbers = found.mosaic.summary()
            rows.append(
                {
                    "machine": name,
                    "sample": number,
                    "last t": numbers["t"],
                    "ESS < 1.5": numbers["single"],
                    **{f"to {to:g}": float((found.mosaic.difference <= to).mean()) for to in TOLERANCES},
                    "sources": numbers["source_images"],
                    "segments": numbers["segments"],
                    "nearest image": float(found.nearest_distances[0]),
                    "s, drawing": drawn - start,
                    "s, explaining": time.perf_counter() - drawn,
                }
            )
    formats = {"machine": "s", "sample": "d", "last t": "g", "ESS < 1.5": ".1%"}
    formats |= {f"to {to:g}": ".1%" for to in TOLERANCES}
    formats |= {"sources": "d", "segments": "d", "nearest image": ".3f"}
    report(rows, formats | {"s, drawing": ".1f", "s, explaining": ".1f"}, f"{len(images)} images")
    write_json(args.json, rows=rows)


if __name__ == "__main__":
    main()
