r"""Time of the CPU kernel against the least that the processor allows.

    python benchmarks/roofline.py cifar10_train.npz

The peaks are measured here, on the threads that the kernel gets: multiply-adds on registers, and loads of a
block from arrays that fit the first and second caches. Instructions and bytes of the kernel are counted from
its tables, for blocks of `BLOCK` floats, and timed in a batch of eight: without exponentials (all blocks are
skipped, by a threshold that is no use otherwise) and with all of them. Real scans lie between the two.
The kernel also computes logits of padding, so `logits / pairs`, its number of logits per pair of a pixel and
a patch, is above 1.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from common import alternate, arguments, report, write_json
from exact import Case
from numba import njit

import patchindex as pi
from patchindex.exact import costs, frame, load_kernel
from patchindex.exact.tables import Plan
from patchindex.kernels.simd import BLOCK, aligned, load_block, splat_block, store

CACHES = {"first": 16 << 10, "second": 512 << 10}  # bytes of an array that fits the cache, with room to spare
SCALES = (3, 7, 11, 17)
# Exponentials that are computed, and the negligible share of a mean that has this effect.
NEGLIGIBLE = {"none": 1e30, "all": 1e-300}


@njit(nogil=True)
def multiply_adds(n, out):  # type: ignore[no-untyped-def]
    """Compute 4 n multiply-adds of blocks, in two independent chains."""
    a, b = splat_block(out[0]), splat_block(out[1])  # unknown to the compiler
    x, y = load_block(out, 0), load_block(out, BLOCK)
    for _ in range(n):
        x = x * a + b
        y = y * a + b
        x = x * b + a
        y = y * b + a
    store(out, 0, x)
    store(out, BLOCK, y)


@njit(nogil=True)
def loads(n, array, out):  # type: ignore[no-untyped-def]
    """Sum an array n times, block by block."""
    x, y = load_block(out, 0), load_block(out, BLOCK)
    for _ in range(n):
        for i in range(0, len(array), 2 * BLOCK):
            x = x + load_block(array, i)
            y = y + load_block(array, i + BLOCK)
    store(out, 0, x)
    store(out, BLOCK, y)


def on_all_threads(function: Callable[..., None], *shapes: int, n: int) -> Callable[[], None]:
    """Run a function at once on as many threads as torch has, each with arrays of its own."""
    threads = torch.get_num_threads()
    arrays = [[aligned(size) for size in shapes] for _ in range(threads)]

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda mine: function(n, *mine), arrays))

    return run


def peaks(repeats: int) -> dict[str, float]:
    """Return the blocks per nanosecond of all threads together."""
    n = 2_000_000
    ways = {"multiply-adds": on_all_threads(multiply_adds, 2 * BLOCK, n=n)}
    done = {"multiply-adds": 4 * n}
    for cache, size in CACHES.items():
        floats = size // 4
        rounds = n * BLOCK // floats
        ways[cache] = on_all_threads(loads, floats, 2 * BLOCK, n=rounds)
        done[cache] = rounds * floats // BLOCK
    times = alternate(ways, repeats)
    threads = torch.get_num_threads()
    return {name: threads * done[name] / times.median(name) * 1e-9 for name in ways}


def counts(plan: Plan) -> dict[str, float]:
    """Count instructions and loads of a tile and a query, in blocks, without and with exponentials."""
    full, channels = plan.full, plan.channels
    slots, steps = int(full.slots.sum()), int(full.steps.sum())
    enters, leaves = (int((full.rows[:, column] >= 0).sum()) for column in (0, 1))
    ready_rows = int((full.rows[:, 2] >= 0).sum())
    ready = int((full.columns[..., 3] >= 0).sum()) * int((full.query_rows[:, 2] >= 0).sum())
    # Down a row: the products that enter and leave, their difference, the sum. Along a row: a difference, the
    # sum, and three for its rounding. A logit: its norm, the rest, the maximum. All but logits are computed
    # for both row offsets of a pair, which share the loads of training values and norms.
    down = 2 * slots * (enters * (channels + 1) + leaves * (channels + 1))
    along, logits = 2 * steps * ready_rows * 5, ready * 3
    # Eleven for 2^x, one each for w and w^2, and the centres.
    exponentials = ready * (11 + 2 + channels)
    return {
        "none": down + along + logits,
        "all": down + along + logits + exponentials,
        "loads none": slots * ((enters + leaves) * channels + 2 * enters)
        + steps * ready_rows * 4
        + int((full.columns[..., 3] >= 0).sum()) * ready_rows,
        "loads all": ready * channels,
        "logits": ready * BLOCK,
    }


def rows_of(
    images: np.ndarray, others: np.ndarray, peak: dict[str, float], repeats: int
) -> list[dict[str, Any]]:
    rows = []
    for k in SCALES:
        for share, negligible in NEGLIGIBLE.items():
            frame.NEGLIGIBLE = negligible
            case = Case(images, others, "ELS", k, 0.6)
            plan = costs.plan_of(case.geometry, images.shape[3], costs.lanes(case.geometry, len(images)))
            count, tiles = counts(plan), -(-len(images) // plan.lanes)
            taken = count["loads none"] + (count["loads all"] if share == "all" else 0)
            seconds = alternate({"ours": lambda case=case: case.ours(8)}, repeats).median("ours") / 8
            pairs = case.pairs
            ideal = tiles * max(count[share] / peak["multiply-adds"], taken / peak["first"])
            rows.append(
                {
                    "k": k,
                    "exponentials": share,
                    "instructions": count[share] * tiles * BLOCK / pairs,
                    "bytes": taken * tiles * BLOCK * 4 / pairs,
                    "logits / pairs": count["logits"] * tiles / pairs,
                    "ns at peak": ideal / pairs,
                    "ns": 1e9 * seconds / pairs,
                    "ns / ns at peak": 1e9 * seconds / ideal,
                }
            )
    return rows


def main() -> None:
    parser = arguments(__doc__, repeats=9)
    parser.add_argument("--limit", type=int, default=256)
    args = parser.parse_args()
    everything = pi.open_images(args.source)[:]
    load_kernel()
    peak = peaks(args.repeats)
    print(
        f"{torch.get_num_threads()} threads, blocks of {BLOCK} floats; at most "
        f"{peak['multiply-adds'] * BLOCK * 2:.0f} GFLOP/s of multiply-adds, and loads of "
        + ", ".join(f"{peak[cache] * BLOCK * 4:.0f} GB/s from the {cache} cache" for cache in CACHES)
    )
    rows = rows_of(everything[: args.limit], everything[-32:], peak, args.repeats)
    forms = dict.fromkeys(rows[0], ".2f") | {"k": "d", "exponentials": "s", "ns at peak": ".3f", "ns": ".3f"}
    report(rows, forms, "per pair")
    write_json(args.json, peak=peak, rows=rows)


if __name__ == "__main__":
    main()
