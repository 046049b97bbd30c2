"""Options of `patchindex sample` that read files: noise, images to start from, known pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchindex.errors import InputError, Option

from .noise_files import read_mask, read_noise
from .options import grouped

if TYPE_CHECKING:
    from patchindex import Denoiser

STRENGTH = 0.6


@dataclass(frozen=True)
class Conditions:
    """The files that a sample starts from."""

    x_t: Path | None
    start: str | None
    strength: float | None
    known: str | None
    mask: str | None
    other_inputs: bool

    def check(self) -> None:
        """Refuse an option that needs another option, if the other option is missing."""
        pairs = {
            "strength": (self.strength, "start"),
            "mask": (self.mask, "known"),
            "known": (self.known, "mask"),
        }
        for name, (value, other) in pairs.items():
            if value is not None and getattr(self, other) is None:
                raise InputError(
                    f"goes with --{other}, which is missing", parameter=name, remedy=["give ", Option(other)]
                )

    def read(self, denoiser: Denoiser) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return arguments of `Sampling`, and the fingerprints of the arrays."""
        from patchindex.sampling import ImageStart, KnownPixels
        from patchindex.store.checksums import fingerprint
        from patchindex.study.originality import read_images

        arguments: dict[str, Any] = {}
        arrays: dict[str, Any] = {}
        if self.x_t is not None:
            arrays["x_t"] = arguments["x_T"] = read_noise(self.x_t)
        if self.start is not None:
            images = arrays["start"] = read_images(self.start, denoiser.shape, "start").numpy()
            arguments["start"] = ImageStart(images, STRENGTH if self.strength is None else self.strength)
        if self.known is not None and self.mask is not None:
            images = arrays["known"] = read_images(self.known, denoiser.shape, "known").numpy()
            arrays["mask"] = read_mask(self.mask)
            arguments["known"] = KnownPixels(images, arrays["mask"])
        return arguments, {f"{name}_fingerprint": fingerprint(array) for name, array in arrays.items()}


condition_options = grouped(
    "conditions",
    Conditions,
    [
        click.option(
            "--x-t",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Noise to start from: .npy; .npz, .h5 or .safetensors with x_T; or .pt.",
        ),
        click.option("--start", metavar="IMAGES", help="Start from images, noised to the time --strength."),
        click.option(
            "--strength",
            type=float,
            metavar="X",
            help=f"Time in (0, 1] to which the images of --start are noised.  [default: {STRENGTH}]",
        ),
        click.option("--known", metavar="IMAGES", help="Keep the pixels of images that --mask shows white."),
        click.option("--mask", metavar="IMAGE", help="Image of the known pixels: white on black."),
        click.option(
            "--other-inputs",
            is_flag=True,
            help="Accept a store and files that have changed since the run of --config.",
        ),
    ],
)
