r"""Patches, bytes, hours and money for data larger than this machine, from measured rates.

    python benchmarks/scaling.py

Prints the tables of docs/scaling.md, with rates from docs/benchmarks-earlier.md. Prices are assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import Any

from common import arguments, report, write_json

from patchindex.schedules import LocalitySchedule

# Measured on two cores (AMD EPYC, Zen 5).
PATCHES_A_SECOND = 504_000  # built; JPEGs of 32 x 32
NANOSECONDS_A_PAIR = 0.22  # of exact scores, two threads
AUTO_SECONDS, AUTO_IMAGES, AUTO_SIZE = 10.9, 50_000, 32  # an image drawn by `auto`
GROWTH = 1.38  # of that time, for twice the data: the last doubling that was measured
CORES = 2
# Assumed, in dollars.
CORE_HOUR, TERABYTE_MONTH = 0.05, 80.0
MACHINES = {"a box of 32 cores": 32, "a cluster of 512 cores": 512}
STEPS = 19


@dataclass(frozen=True)
class Data:
    """A set of images and its locality schedule, for bbELS, which has a window at every position."""

    name: str
    images: int
    size: int
    preset: str

    def scales(self) -> tuple[int, ...]:
        """Return the scales to build."""
        return LocalitySchedule.of(self.preset).distinct

    def patches(self) -> int:
        """Return the number of patches at all scales."""
        return self.images * self.size**2 * len(self.scales())

    def stored(self) -> int:
        """Return the bytes of the store: code, id and share of a list for each patch, and the images."""
        a_patch = sum({3: 24, 5: 48}.get(k, 56) + 8 + 1 for k in self.scales())
        return self.images * self.size**2 * (a_patch + 3)

    def auto(self) -> float:
        """Return the core seconds of an image drawn by `auto`, from its pixels and the growth with images."""
        doublings = max(0.0, log2(self.images / AUTO_IMAGES * (self.size / AUTO_SIZE) ** 2))
        return CORES * AUTO_SECONDS * (self.size / AUTO_SIZE) ** 2 * GROWTH**doublings

    def exact(self) -> float:
        """Return the core seconds of an exact image: every pixel is compared with every patch."""
        pairs = self.size**2 * self.images * self.size**2 * STEPS
        return CORES * NANOSECONDS_A_PAIR * 1e-9 * pairs


SETS = (
    Data("CelebA at 32", 202_599, 32, "celeba-resnet-zeros"),
    Data("CelebA at 64", 202_599, 64, "celeba-resnet-zeros"),
    Data("ImageNet at 64", 1_281_167, 64, "cifar10-resnet-zeros"),
    Data("100 million at 64", 100_000_000, 64, "cifar10-resnet-zeros"),
)


def main() -> None:
    args = arguments(__doc__, source=False).parse_args()
    stores: list[dict[str, Any]] = []
    times: list[dict[str, Any]] = []
    for data in SETS:
        build = data.patches() / PATCHES_A_SECOND * CORES / 3600
        stores.append(
            {
                "data": data.name,
                "scales": len(data.scales()),
                "patches": f"{data.patches():.2g}",
                "store": f"{data.stored() / 1e12:.3g} TB",
                "disk per month": f"${data.stored() / 1e12 * TERABYTE_MONTH:,.0f}",
                "core hours to build": f"{build:,.0f}",
                "money": f"${build * CORE_HOUR:,.2f}",
                "box": f"{build / 32:,.1f} h",
                "cluster": f"{build / 512:,.2f} h",
            }
        )
        for name, cores in MACHINES.items():
            times.append(
                {
                    "data": data.name,
                    "on": name,
                    "auto": f"{data.auto() / cores:,.2g} s",
                    "money, auto": f"${data.auto() / 3600 * CORE_HOUR:.2g}",
                    "exact": f"{data.exact() / cores / 60:,.2g} min",
                    "money, exact": f"${data.exact() / 3600 * CORE_HOUR:,.2g}",
                }
            )
    report(stores, dict.fromkeys(stores[0], "s") | {"scales": "d"}, "stores")
    report(times, dict.fromkeys(times[0], "s"), "per image, 19 steps")
    write_json(args.json, stores=stores, times=times)


if __name__ == "__main__":
    main()
