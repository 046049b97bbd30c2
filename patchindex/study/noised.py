"""Noisy images at which the posterior means of denoisers and of a network are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchindex.errors import InputError
from patchindex.images import ImagesLike, open_images
from patchindex.images.by_label import TrainingImages, as_tensor, to_unit
from patchindex.images.fingerprints import image_fingerprint, image_fingerprints
from patchindex.random_streams import random_stream
from patchindex.study.metrics import has_one_colour, pearson_r, r2, rmse

__all__ = [
    "MEASURES",
    "Noised",
    "correlation",
    "determination",
    "fresh_noise",
    "held_out_images",
    "training_images",
]

MEASURES = ("pearson_r", "r2", "mse", "error", "network_error")
CHOICE, HELD_OUT = 11, 12  # what is drawn; the kinds of `fresh_noise` are smaller
NOISED_STREAM = 2  # tells these draws from the noise of the start and of steps: a seed may not end with 0


@dataclass(frozen=True)
class Noised:
    """M images, noisy at T times, with the posterior means of the network.

    Attributes
    ----------
    x, mean : numpy.ndarray, shape (M, T, C, H, W), float32
        Noisy images, and the network's estimates of the clean images.
    clean : numpy.ndarray, shape (M, C, H, W), or None
        The clean images; None for images on the network's own trajectory.
    """

    x: np.ndarray
    mean: np.ndarray
    clean: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.x)

    def measures(self, images: Sequence[int], step: int, mean: Tensor) -> dict[str, np.ndarray]:
        """Compare posterior means (images, C, H, W) at one time: a number per image for each measure.

        `pearson_r`, `r2` and `mse` are against the network. `error` is the mean square error against the
        clean images, and `network_error` is the error of the network; NaN without clean images.
        """
        rows = list(images)
        mean, network = mean.cpu(), torch.from_numpy(self.mean[rows, step])
        found = {
            "pearson_r": correlation(mean, network),
            "r2": determination(mean, network),
            "mse": rmse(mean, network).square(),
            "error": torch.full((len(rows),), torch.nan),
            "network_error": torch.full((len(rows),), torch.nan),
        }
        if self.clean is not None:
            clean = torch.from_numpy(self.clean[rows])
            found["error"] = rmse(mean, clean).square()
            found["network_error"] = rmse(network, clean).square()
        return {name: values.double().numpy() for name, values in found.items()}


def correlation(images: Tensor, reference: Tensor) -> Tensor:
    """Return Pearson's r of each image (n, C, H, W); 0 where an image has one colour up to rounding."""
    return pearson_r(images, reference).masked_fill(has_one_colour(images) | has_one_colour(reference), 0.0)


def determination(images: Tensor, reference: Tensor) -> Tensor:
    """Return R^2 of each image (n, C, H, W); NaN where a reference has one colour up to rounding."""
    return r2(images, reference).masked_fill(has_one_colour(reference), torch.nan)


def fresh_noise(seed: int, kind: int, n: int, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal noise (n, C, H, W); image i depends on the seed, the kind and on i only."""
    images = [_stream(seed, kind, i).standard_normal(shape, dtype=np.float32) for i in range(n)]
    return torch.from_numpy(np.stack(images))


def _stream(seed: int, kind: int, i: int = 0) -> np.random.Generator:
    return random_stream(seed, kind, i, NOISED_STREAM)


def training_images(training: TrainingImages, labels: Sequence[int | None], seed: int) -> Tensor:
    """Choose one training image for each label: float32 (n, C, H, W) in [-1, 1]."""
    chosen = []
    for i, label in enumerate(labels):
        lo, hi = training.range_of(label)
        number = int(_stream(seed, CHOICE, i).integers(lo, hi))
        chosen.append(training.read(number, number + 1))
    return _as_images(np.concatenate(chosen))


def held_out_images(
    source: ImagesLike, training: TrainingImages, labels: Sequence[int | None], seed: int
) -> Tensor:
    """Choose one image for each label that is not a training image: float32 (n, C, H, W) in [-1, 1].

    Raises
    ------
    InputError
        When the images have another size than the training images, no labels although labels are wanted, or
        too few of them are not training images.
    """
    images = open_images(source)
    expected = (*training.size, training.channels)
    if images.shape[1:] != expected:
        raise InputError(
            f"images are of {images.shape[1:]}, the training images are of {expected} (H, W, C)",
            parameter="held_out",
            remedy="crop and resize them in the same way",
        )
    if labels[0] is not None and images.labels is None:
        raise InputError("the images have no labels", parameter="held_out", remedy="give images with labels")
    known = set(image_fingerprints(training.source))
    wanted, found = Counter(labels), {label: list[np.ndarray]() for label in labels}
    for number in _stream(seed, HELD_OUT).permutation(len(images)).tolist():
        label = None if labels[0] is None or images.labels is None else int(images.labels[number])
        if len(found.get(label, ())) >= wanted[label]:
            continue
        image = images[number]
        if image_fingerprint(image) not in known:
            found[label].append(image)
        if all(len(found[each]) == wanted[each] for each in wanted):
            break
    else:
        label = next(each for each in wanted if len(found[each]) < wanted[each])
        with_label = "" if label is None else f" with label {label}"
        raise InputError(
            f"has {len(found[label])} of {wanted[label]} images{with_label} that are not training images",
            parameter="held_out",
            remedy="give more images, or use fewer",
        )
    order = [found[label].pop(0) for label in labels]
    return _as_images(np.stack(order))


def _as_images(pixels: np.ndarray) -> Tensor:
    return to_unit(as_tensor(pixels)).permute(0, 3, 1, 2).contiguous()
