"""Locality schedules by name, with their provenance. Kamb & Ganguli (arXiv 2412.20292) published most."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from patchindex.checks import is_whole
from patchindex.errors import InputError

__all__ = ["LOCALITY_PRESETS", "PUBLISHED", "Provenance", "provenance_of"]


@dataclass(frozen=True)
class Provenance:
    """The origin of a locality schedule. An empty text is unknown.

    Attributes
    ----------
    network : str
        The network whose locality was measured.
    data : str
        The images that the network was trained on.
    image_size : tuple of int, or None
        Height and width of these images.
    noise : str
        Name of the noise schedule of the network.
    method : str
        How the scales were found.

    Raises
    ------
    InputError
        When a text is no text, or the size is not two numbers of pixels.
    """

    network: str = ""
    data: str = ""
    image_size: tuple[int, int] | None = None
    noise: str = ""
    method: str = ""

    def __post_init__(self) -> None:
        for name in ("network", "data", "noise", "method"):
            if not isinstance(getattr(self, name), str):
                raise _refused(f"{name} must be text, got {getattr(self, name)!r}")
        size = self.image_size
        if size is None:
            return
        if (
            not isinstance(size, list | tuple)
            or len(size) != 2
            or not all(is_whole(n) and n > 0 for n in size)
        ):
            raise _refused(f"image_size must be two numbers of pixels, got {size!r}")
        object.__setattr__(self, "image_size", (int(size[0]), int(size[1])))

    def as_dict(self) -> dict[str, Any]:
        """Return the provenance as plain data."""
        return asdict(self) | {"image_size": None if self.image_size is None else list(self.image_size)}


def _refused(what: str) -> InputError:
    return InputError(what, parameter="provenance", remedy="give text, and a size such as (32, 32)")


# Entry i of 20 holds at t = i / 20 of the cosine noise schedule. The first entry is never used.
PUBLISHED: dict[str, tuple[int, ...]] = {
    "cifar10-resnet-circular": (3, 3, 3, 3, 5, 5, 5, 5, 7, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15, 15),
    "cifar10-resnet-zeros": (3, 3, 3, 3, 5, 5, 5, 7, 7, 7, 7, 9, 9, 11, 11, 13, 15, 17, 17, 17),
    "cifar10-unet-zeros": (3, 3, 3, 3, 5, 5, 5, 5, 7, 7, 7, 7, 9, 9, 11, 13, 13, 15, 17, 25),
    "celeba-resnet-zeros": (3, 3, 3, 5, 5, 5, 5, 5, 7, 7, 9, 9, 9, 11, 11, 11, 13, 15, 19, 19),
    "celeba-unet-zeros": (3, 3, 3, 3, 3, 3, 3, 5, 5, 5, 5, 5, 7, 7, 9, 9, 9, 13, 19, 27),
    "fashion-mnist-resnet-zeros": (3, 3, 5, 5, 7, 7, 9, 9, 9, 11, 11, 11, 13, 13, 13, 15, 15, 15, 17, 17),
    "fashion-mnist-unet-zeros": (3, 3, 5, 5, 7, 7, 7, 9, 11, 11, 11, 13, 15, 15, 21, 23, 25, 25, 25, 25),
    "mnist-resnet-circular": (3, 3, 5, 5, 5, 7, 7, 9, 9, 9, 11, 11, 11, 11, 9, 9, 7, 7, 3, 3),
    "mnist-resnet-zeros": (3, 3, 5, 5, 5, 7, 7, 7, 9, 9, 11, 11, 11, 11, 13, 15, 15, 15, 15, 15),
    "mnist-unet-zeros": (3, 3, 3, 5, 5, 7, 7, 7, 9, 9, 9, 11, 13, 15, 17, 21, 23, 23, 25, 27),
}

DATA = {  # the images, and whether the networks take a label
    "celeba": ("CelebA", "unconditional"),
    "cifar10": ("CIFAR-10", "class-conditional"),
    "fashion-mnist": ("Fashion-MNIST", "class-conditional"),
    "mnist": ("MNIST", "unconditional"),
}
NETWORKS = {
    "resnet-circular": "ResNet with circular padding",
    "resnet-zeros": "ResNet with zero padding",
    "unet-zeros": "UNet with zero padding",
}
METHOD = (
    "published with arXiv 2412.20292: largest cosine similarity to the network's score, median of 10 samples"
)

# Presets that are not of the paper: scales as above, and their provenance.
OTHERS: dict[str, tuple[tuple[int, ...], Provenance]] = {
    "fashion-mnist-28-small-resnet": (
        (3, 3, 3, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 7, 7, 7, 7, 9, 9, 9),
        Provenance(
            "ResNet with zero padding, 64 channels and 4 000 steps of training, unconditional",
            "6 000 images of Fashion-MNIST",
            (28, 28),
            "cosine",
            "patchindex calibrate: largest cosine similarity to the network's score, median of 10 samples",
        ),
    ),
}

LOCALITY_PRESETS: dict[str, tuple[int, ...]] = {
    **PUBLISHED,
    **{name: scales for name, (scales, _) in OTHERS.items()},
}


def provenance_of(preset: str) -> Provenance:
    """Return the provenance of a preset: one of its own, or 32 x 32 images and a network of the paper."""
    if preset in OTHERS:
        return OTHERS[preset][1]
    data = next(name for name in sorted(DATA) if preset.startswith(name))
    images, labels = DATA[data]
    network = f"{NETWORKS[preset.removeprefix(f'{data}-')]}, {labels}"
    return Provenance(network, images, (32, 32), "cosine", METHOD)
