"""Counted limits of the exact engines on a GPU, from operations and bytes per pair and from data sheets.

docs/gpu.md explains the counts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["RATES", "Rates", "pairs_per_second"]


class Rates(NamedTuple):
    """Peak rates of a GPU per second: dense fp16 on tensor cores, float32, exponentials, bytes of memory."""

    fp16: float  # multiplications and additions
    fp32: float  # multiplications and additions
    exponentials: float  # 16 per multiprocessor and cycle
    memory: float


RATES = {
    "H200": Rates(989e12, 67e12, 4.2e12, 4.8e12),
    "H100 80GB HBM3": Rates(989e12, 67e12, 4.2e12, 3.35e12),
    "A100": Rates(312e12, 19.5e12, 2.4e12, 2.0e12),
}

CHUNK = 16  # numbers of a window are padded to a multiple: the length of an fp16 product on tensor cores
INSTRUCTIONS = 9  # float32 instructions per pair of the fused kernel, beside one for each channel
PASSES = 10  # passes of `offsets` over its float32 arrays of pairs


def pairs_per_second(rates: Rates, engine: str, k: int, channels: int, size: int) -> float | None:
    """Return the counted limit of an engine for square images; None for an engine without a count."""
    numbers = k * k * channels
    if engine == "fused":
        products = rates.fp16 / (4 * CHUNK * math.ceil(numbers / CHUNK))
        return min(products, rates.fp32 / 2 / (INSTRUCTIONS + channels), rates.exponentials)
    if engine == "offsets":
        return min(rates.fp32 / 2 / ((channels + 1) * size + size), rates.memory / (4 * PASSES))
    return None
