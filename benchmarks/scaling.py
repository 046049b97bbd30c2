r"""Patches, bytes, hours and money for data larger than this machine, from measured rates.

    python benchmarks/scaling.py

Prints the table of docs/scaling.md. Rates are those of docs/benchmarks.md; prices are assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass

from timing import table

from patchindex.schedules import LocalitySchedule

# Measured, on two cores (AMD EPYC, Zen 5).
PATCHES_A_SECOND = 700_000  # built, of 32 x 32 x 3
NANOSECONDS_A_PAIR = 0.22  # exact, two threads
AUTO_SECONDS, AUTO_IMAGES, AUTO_GROWTH = 10.3, 50_000, 1.38  # an image of 32 x 32, and times for twice the data
CORES = 2
# Assumed: dollars an hour.
CORE_HOUR, BOX_CORES, CLUSTER_CORES = 0.05, 32, 512


@dataclass(frozen=True)
class Data:
    """A set of images and the machine for it."""

    name: str
    images: int
    size: int
    preset: str

    def scales(self) -> tuple[int, ...]:
        """Return the scales to build."""
        return LocalitySchedule.of(self.preset).distinct


SETS = (
    Data("CelebA-32", 202_599, 32, "celeba-resnet-zeros"),
    Data("CelebA-64", 202_599, 64, "celeba-resnet-zeros"),
    Data("ImageNet-64", 1_281_167, 64, "cifar10-resnet-zeros"),
    Data("100 M images at 64", 100_000_000, 64, "cifar10-resnet-zeros"),
)


def code_bytes(k: int) -> int:
    """Return the bytes of a patch: codes as they were chosen for CIFAR-10, its id, and its share of a list."""
    return {3: 24, 5: 48}.get(k, 56) + 8 + 5
