"""Counted limits of the exact engines on a GPU: operations and bytes per pair, over rates of data sheets.

    python benchmarks/gpu_limits.py

prints the limits of an H200 for ELS on 50 000 images of 32 x 32 x 3, the time of a step at each scale, and of
an image. docs/gpu.md explains the counts. `gpu.py` prints the limits beside what it measures.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from common import arguments, report, write_json

from patchindex.exact.window_tables import Layout
from patchindex.schedules import LocalitySchedule, cosine

__all__ = ["RATES", "Rates", "limits", "pairs_per_second"]


class Rates(NamedTuple):
    """Peak rates of a GPU per second, without sparsity; a multiplication and an addition count as two."""

    fp16: float  # operations of tensor cores
    fp32: float  # operations of other cores
    exponentials: float  # 16 per multiprocessor and cycle
    memory: float  # bytes


RATES = {
    "H200": Rates(989e12, 67e12, 4.2e12, 4.8e12),
    "H100 80GB HBM3": Rates(989e12, 67e12, 4.2e12, 3.35e12),
    "A100": Rates(312e12, 19.5e12, 2.4e12, 2.0e12),
}

INSTRUCTIONS = 6  # of float32, per pair of `fused`, and one for each channel
SUMS = 20  # operations of float32 per pair of a kernel with running sums, which does not exist
PASSES = 10  # of `offsets` over its float32 arrays of pairs


def limits(rates: Rates, engine: str, k: int, channels: int, size: int, rows: int) -> dict[str, float]:
    """Return the pairs per second that each part of the GPU allows an engine; empty for other engines.

    `rows` is the number of pixels of all noisy images, which are scanned together.
    """
    numbers = Layout.of(k * k * channels).padded(k * k * channels)
    if engine == "fused":
        return {
            "tensor cores": rates.fp16 / (4 * numbers),
            "float32": rates.fp32 / 2 / (INSTRUCTIONS + channels),
            "exponentials": rates.exponentials,
            "memory": rates.memory / (4 * numbers / rows),
        }
    if engine == "offsets":
        return {
            "float32": rates.fp32 / 2 / (k * channels + 1 + size),
            "exponentials": rates.exponentials,
            "memory": rates.memory / (4 * PASSES),
        }
    return {}


def pairs_per_second(rates: Rates, engine: str, k: int, channels: int, size: int, rows: int) -> float | None:
    """Return the least of the `limits`; None where there are none."""
    return min(limits(rates, engine, k, channels, size, rows).values(), default=None)


def main() -> None:
    args = arguments(__doc__, source=False).parse_args()
    rates, size, channels, images = RATES["H200"], 32, 3, 50_000
    rows: list[dict[str, Any]] = []
    schedule = LocalitySchedule.of("cifar10-resnet-circular")
    seconds = dict.fromkeys(("fused", "offsets"), 0.0)
    steps = [schedule.k(cosine(i / 20)) for i in range(19, 0, -1)]
    for k in range(3, 18, 2):
        pairs = images * size**2 * (size - k + 1) ** 2
        row = {"k": k, "pairs": pairs, **limits(rates, "fused", k, channels, size, size**2)}
        for engine in seconds:
            step = pairs / (pairs_per_second(rates, engine, k, channels, size, size**2) or math.nan)
            row[f"{engine} ms"] = 1e3 * step
            seconds[engine] += steps.count(k) * step
        row["sums ms"] = 1e3 * pairs * SUMS / rates.fp32
        rows.append(row)
    forms = dict.fromkeys(("pairs", "tensor cores", "float32", "exponentials", "memory"), ".1e")
    forms |= dict.fromkeys(("fused ms", "offsets ms", "sums ms"), ".0f")
    report(rows, {"k": "d"} | forms, "pairs per second that each part of an H200 allows `fused`; a step")
    print(f"an image in 20 steps: {', '.join(f'{engine} {s:.2f} s' for engine, s in seconds.items())}")
    write_json(args.json, scales=rows, image=seconds)


if __name__ == "__main__":
    main()
