"""`originality`: the distance of images from the training images, and the training images they draw from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchindex.checks import check_least, check_times
from patchindex.denoisers import ScoreMachine, is_store
from patchindex.errors import InputError, printable
from patchindex.exact import ScoreRequest
from patchindex.geometry import Geometry
from patchindex.images import ImagesLike, open_images
from patchindex.images.by_label import TrainingImages, to_unit
from patchindex.images.formats.npz import read_arrays
from patchindex.images.nearest import Nearest, nearest_images, shifts_within
from patchindex.index import PatchIndex, open_index
from patchindex.networks.provenance import ImagesRecord
from patchindex.runtime import Progress, as_progress, part_of, plain_state
from patchindex.sampling import draw_noise
from patchindex.sampling.draws import as_tensor
from patchindex.schedules.frames import with_noise
from patchindex.study.contributions import contributions, some_pixels
from patchindex.study.originality_results import Originality

__all__ = ["TIMES", "originality", "read_images"]

TIMES = (0.05, 0.25, 0.5, 0.75)
COPY = 1 / 3  # Yoon et al. 2023: nearest distance over second nearest below which an image is a copy


@plain_state()
def originality(
    images: ImagesLike | Tensor,
    source: PatchIndex | ImagesLike,
    machine: ScoreMachine | None = None,
    *,
    shift: int = 4,
    times: Sequence[float] = TIMES,
    pixels: int = 64,
    baseline: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Originality:
    """Compare images with all training images, by distance and by weight in the softmax of a machine.

    Distances are root mean squares per pixel and channel, in units of [-1, 1]. A shifted training image is
    moved by up to `shift` pixels along each axis, cyclically: the symmetry of ELS, whose windows wrap around.
    Where the borders are of one colour, a shift with padding gives the same. The baseline is the distances of
    training images to all others: held-out images of the same distribution have the same distances, up to
    chance.

    Parameters
    ----------
    images : Tensor or array of float, shape (n, C, H, W), in [-1, 1]; or anything `open_images` takes
        A `samples.npz` of `patchindex sample`, for example.
    source : PatchIndex, or anything `open_images` takes
        The training images: a store (or its path), or images.
    machine : ScoreMachine, optional
        A machine of the same images. Each image gets the noise of each of `times`; the weights of the exact
        softmax say how many training images it draws from.
    shift : int
        Largest shift in pixels.
    times : sequence of float
        Times in (0, 1), for `machine`.
    pixels : int
        Pixels per image whose weights are added up, drawn at random from those whose neighbourhood is not
        flat: flat neighbourhoods are the same in all training images.
    baseline : int
        Training images in the baseline, evenly spread.
    seed : int
        Seed of the noise and of the pixels.
    progress : Progress, optional

    Returns
    -------
    Originality

    Raises
    ------
    InputError
        When images, training images and machine do not fit together, or a number is too small.

    Examples
    --------
    >>> training = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    >>> copies = np.roll(training[3:5], 1, axis=2)  # moved by one pixel to the right
    >>> found = originality(copies, training, shift=2)
    >>> [(row["shifted"], row["shifted_image"], row["shift_x"]) for row in found.rows]
    [(0.0, 3, 1), (0.0, 4, 1)]
    >>> found.rows[0]["nearest"] > 0.1
    True
    """
    progress = as_progress(progress)
    check_least(shift=(shift, 0), pixels=(pixels, 1), baseline=(baseline, 1), seed=(seed, 0))
    check_times(times)
    training = _training(source)
    x = read_images(images, (training.channels, *training.size))
    if len(training) < 2:
        raise InputError("holds one image", parameter="source", remedy="give at least two images")
    if machine is not None and not _has_images(machine, training):
        raise InputError(
            "has other images than the source", parameter="machine", remedy="use the same images"
        )
    levels = [] if machine is None else [_Level.of(machine, t) for t in times]
    shares = (0.5, 0.7) if machine is not None else (0.7, 1.0)
    shifts = shifts_within(shift, training.size)
    found = _neighbours(x, training, shifts, None, part_of(progress, "nearest images", 0, shares[0]))
    spread = np.unique(np.linspace(0, len(training) - 1, baseline).round().astype(np.int64))
    others = torch.from_numpy(training.source_ids[spread])
    held = _read(training, others)
    apart = _neighbours(held, training, shifts, others, part_of(progress, "baseline", *shares))
    usual = [float(np.median(each.distance[:, 0])) for each in apart]
    rows = [
        _row(i, [each.distance[i] for each in found], [each.image[i, 0] for each in found], training)
        | {"shift_y": int(found[1].shift[i, 0, 0]), "shift_x": int(found[1].shift[i, 0, 1])}
        | {f"relative_{name}": float(each.distance[i, 0]) / typical if typical else None
           for name, each, typical in zip(("nearest", "shifted"), found, usual, strict=True)}
        for i in range(len(x))
    ]  # fmt: skip
    base = [
        _row(int(n), [each.distance[i] for each in apart], [each.image[i, 0] for each in apart], training)
        for i, n in enumerate(others)
    ]
    steps = []
    if machine is not None:
        chosen = some_pixels(x, pixels, seed)
        noise = draw_noise(seed, len(x), tuple(x.shape[1:]))
        for number, level in enumerate(levels):
            low, high = (shares[1] + (1 - shares[1]) * (number + i) / len(levels) for i in (0, 1))
            part = part_of(progress, "training images", low, high)
            steps += _sources(machine, level, x, noise, chosen, part)
    neighbours = {
        name: torch.stack([
            torch.roll(image, shift, (1, 2))
            for image, shift in zip(
                _read(training, each.image[:, 0]), each.shift[:, 0].tolist(), strict=True
            )
        ])
        for name, each in zip(("nearest", "shifted"), found, strict=True)
    }  # fmt: skip
    settings = {
        "training_images": len(training),
        "shift": shift,
        "times": list(times) if machine is not None else [],
        "pixels": pixels,
        "seed": seed,
        "machine": None if machine is None else machine.settings,
    }
    return Originality(rows, base, steps, {"images": x, **neighbours}, settings)


def read_images(
    images: ImagesLike | Tensor, shape: tuple[int, int, int], parameter: str = "images"
) -> Tensor:
    """Return images as float32 (n, C, H, W) in [-1, 1]; errors name the parameter.

    Floats of shape (n, C, H, W) are taken as they are, also from the key `images` of an .npz; all else is
    opened by `open_images`.

    Raises
    ------
    InputError
        When the images have another shape, or floats are not finite or far outside [-1, 1].
    """
    if isinstance(images, str | Path) and Path(images).suffix == ".npz" and Path(images).is_file():
        images = read_arrays(Path(images), required="images")["images"]
    floats = isinstance(images, np.ndarray) and images.dtype.kind == "f"
    given = as_tensor(images, parameter) if floats else images
    # In this order of dimensions there are no uint8 images.
    if isinstance(given, Tensor) and given.is_floating_point() and given.dim() == 4 and given.shape[-1] > 3:
        _check_shape(tuple(given.shape[1:]), shape, parameter)
        if not len(given):
            raise InputError("holds no images", parameter=parameter, remedy="give at least one image")
        largest = float(given.abs().max())
        if not largest <= 2:  # also NaN
            raise InputError(
                f"must be finite and about in [-1, 1], got values up to {largest:.3g}",
                parameter=parameter,
                remedy="scale or clamp them",
            )
        return given.detach().cpu().float()
    opened = open_images(images)
    _check_shape((opened.shape[3], *opened.shape[1:3]), shape, parameter)
    return opened.floats()


def _check_shape(found: tuple[int, ...], shape: tuple[int, int, int], parameter: str) -> None:
    if found != shape:
        raise InputError(
            f"are of shape {found}, the training images of {shape} (channels, height, width)",
            parameter=parameter,
            remedy="give images of the training images' shape",
        )


def _training(source: PatchIndex | ImagesLike) -> TrainingImages:
    if is_store(source):
        source = open_index(source)
    if isinstance(source, PatchIndex):
        source.check_images(0, len(source.training))
        return source.training
    return TrainingImages(source)


def _read(training: TrainingImages, ids: Tensor) -> Tensor:
    """Return training images by their numbers in the source, (n, C, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(training.read_some(training.numbers_of(ids.numpy())))
    return to_unit(pixels).permute(0, 3, 1, 2)


def _neighbours(
    x: Tensor,
    training: TrainingImages,
    shifts: list[tuple[int, int]],
    leave_out: Tensor | None,
    progress: Progress,
) -> tuple[Nearest, Nearest]:
    """Return the nearest training images, and the nearest shifted ones."""
    share = 1 / (1 + len(shifts))
    each = ((shifts[:1], 0.0, share), (shifts, share, 1.0))
    plain, shifted = (
        nearest_images(
            x,
            training,
            some,
            kept=2,  # the second tells a copy from an image that many resemble
            leave_out=leave_out,
            progress=part_of(progress, "nearest images", low, high),
        )
        for some, low, high in each
    )
    return plain, shifted


def _row(
    number: int, distances: list[Tensor], images: list[Tensor], training: TrainingImages
) -> dict[str, Any]:
    nearest, second = [*distances[0].tolist(), float("inf")][:2]
    return {
        "image": number,
        "nearest": nearest,
        **_named("nearest", int(images[0]), training),
        "second": second,
        "copy": nearest < COPY * second,
        "shifted": float(distances[1][0]),
        **_named("shifted", int(images[1]), training),
    }


def _named(column: str, number: int, training: TrainingImages) -> dict[str, Any]:
    """Return the number in the source of a training image, and its file name if the images have names."""
    name = {f"{column}_name": printable(training.image_names([number])[0])} if training.has_names else {}
    return {f"{column}_image": number, **name}


@dataclass(frozen=True)
class _Level:
    """A time, and what a machine does at this time."""

    t: float
    beta: float
    k: int | None
    geometry: Geometry

    @classmethod
    def of(cls, machine: ScoreMachine, t: float) -> _Level:
        k = machine.scale_at(t)
        geometry = Geometry.of(machine.machine, k, machine.training.size, machine.train_windows)
        return cls(t, machine.noise(t), k, geometry)


def _has_images(machine: ScoreMachine, training: TrainingImages) -> bool:
    """Return whether a machine has these training images."""
    if (len(machine.training), machine.shape) != (len(training), (training.channels, *training.size)):
        return False
    found, wanted = (ImagesRecord.of(each) for each in (machine.training, training))
    return found.fingerprint == wanted.fingerprint


def _sources(
    machine: ScoreMachine,
    level: _Level,
    x: Tensor,
    noise: Tensor,
    chosen: list[Tensor],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return one row per image: the training images that it draws from at a time."""
    noisy = with_noise(x, noise, level.beta)
    request = ScoreRequest(
        machine.training,
        level.geometry,
        noisy,
        level.beta,
        label=machine.label,
        pixels=chosen,
        progress=progress,
    )
    found = contributions(request)
    heaviest, where = found.weight.max(1)
    ids = machine.training.source_ids[request.image_range[0] + where.numpy()]
    nothing = dict.fromkeys(_named("heaviest", int(ids[0]), machine.training))
    return [
        {
            "image": i,
            "t": level.t,
            "beta": level.beta,
            "k": level.k,
            "ess": float(found.ess[i]) if len(chosen[i]) else None,
            "images_per_pixel": float(found.images_per_pixel[i]) if len(chosen[i]) else None,
            "images": float(found.images[i]) if len(chosen[i]) else None,
            "heaviest": float(heaviest[i]) if len(chosen[i]) else None,
            **(_named("heaviest", int(ids[i]), machine.training) if len(chosen[i]) else nothing),
        }
        for i in range(len(x))
    ]
