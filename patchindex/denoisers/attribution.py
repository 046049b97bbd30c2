"""`Attribution`: the training patches behind a pixel, with their weights in the posterior mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from torch import Tensor

from patchindex.checks import check_least, is_whole
from patchindex.errors import InputError
from patchindex.exact import HeaviestPatches
from patchindex.figures import figure_class, file_title, show_image, show_window
from patchindex.images.by_label import TrainingImages
from patchindex.images.file_names import numbered
from patchindex.images.tensors import as_tensor, to_unit
from patchindex.runtime import memory_limit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Attribution", "Attributions", "check_pixels", "check_top"]

PATCH_BYTES = 160  # of a pixel and a named patch, in the search and in the arrays of the result


@dataclass(frozen=True, repr=False)
class Attribution:
    """The training patches behind one pixel of a noisy image, the heaviest first.

    The posterior mean of the pixel is the mean of the centres of all training patches of its class, weighted
    by the softmax. The arrays name the heaviest patches; `rest` is the weight of all others.

    Attributes
    ----------
    sample : int
        Number of the noisy image in the batch.
    pixel : tuple of int
        The pixel, (y, x).
    image : numpy.ndarray, shape (n,), int64
        Number of the training image in the source.
    y, x : numpy.ndarray, shape (n,), int64
        Position of the centre of the patch in the training image.
    label : numpy.ndarray, shape (n,), int64
        Label of the training image, -1 without labels.
    weight : numpy.ndarray, shape (n,), float64
        Weight in the softmax over all patches, descending.
    rest : float
        Weight of the patches that are not named: `weight.sum() + rest` is 1.
    ess : float
        Effective sample size of the whole softmax, `1 / sum w^2`; NaN for `"topk"`.
    entropy : float
        Entropy of the whole softmax in nats, `-sum w log w`; NaN unless the method is `"exact"`.
    captured_mass : float
        Share of the softmax weights that the evaluated patches hold, as in `Estimate`: 1 if exact, else
        estimated.
    relative_error : float
        Standard error of the sum of all weights, divided by the sum: all weights share this error. 0 if
        exact, NaN if unknown.
    method : str
        `"exact"`: every patch was compared. `"near field"` or `"topk"`: the patches were retrieved from the
        index, which may miss one, and the sum of all weights is an estimate.
    name : tuple of str, length n
        File names of the training images; empty names for images that are no files.
    noisy : Tensor, shape (C, H, W), float32
        The noisy image.
    t : float
        Its time.
    k : int or None
        Locality scale: the patches have k x k pixels. None for IS, which compares whole images.
    training : TrainingImages
        The training images.
    """

    sample: int
    pixel: tuple[int, int]
    image: np.ndarray
    y: np.ndarray
    x: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    rest: float
    ess: float
    entropy: float
    captured_mass: float
    relative_error: float
    method: str
    name: tuple[str, ...]
    noisy: Tensor
    t: float
    k: int | None
    training: TrainingImages

    def __len__(self) -> int:
        return len(self.weight)

    def plot(self, most: int = 6) -> Figure:
        """Draw the noisy image with the window of the pixel, and the heaviest patches in their images.

        Parameters
        ----------
        most : int
            Number of patches, at most.

        Returns
        -------
        matplotlib.figure.Figure
            A notebook shows the figure; `savefig` writes it to a file.

        Raises
        ------
        InputError
            When matplotlib is not installed, or `most` is below 1.

        Examples
        --------
        >>> import torch
        >>> from patchindex.denoisers import ScoreMachine
        >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
        >>> m = ScoreMachine(images, machine="LS", locality=3)
        >>> figure = m.explain(torch.randn(1, 1, 8, 8), 0.3, [(4, 2)])[0].plot(most=3)
        >>> [panel.get_title().split()[0] for panel in figure.axes]
        ['t', 'image', 'image', 'image']
        """
        check_least(most=(most, 1))
        shown = min(most, len(self))
        height = 2.4 if any(self.name) else 2.2  # two or three lines of text above the images
        figure = figure_class()(figsize=(1.6 * (1 + shown), height), layout="constrained")
        noisy, *panels = figure.subplots(1, 1 + shown, squeeze=False)[0]
        show_image(noisy, self.noisy / self.noisy.abs().max().clamp_min(1))
        show_window(noisy, self.pixel, self.k)
        noisy.set_title(f"t = {self.t:.3g}" + (f", k = {self.k}" if self.k else ""), fontsize=9)
        numbers = self.training.numbers_of(self.image[:shown])
        for i, (panel, number) in enumerate(zip(panels, numbers, strict=True)):
            pixels = as_tensor(self.training.read_some(np.array([number])))
            show_image(panel, to_unit(pixels)[0].permute(2, 0, 1))
            show_window(panel, (int(self.y[i]), int(self.x[i])), self.k)
            name = f"\n{file_title(self.name[i])}" if self.name[i] else ""
            panel.set_title(f"image {self.image[i]}{name}\nweight {self.weight[i]:.4f}", fontsize=9)
        return figure

    def __repr__(self) -> str:
        heaviest = ", ".join(
            f"{w:.3f} of image {numbered(i, name)} at ({y}, {x})"
            for w, i, name, y, x in zip(self.weight[:3], self.image, self.name, self.y, self.x, strict=False)
        )
        more = ", ..." if len(self) > 3 else ""
        sample, pixel, n = self.sample, self.pixel, len(self)
        return (
            f"Attribution(sample {sample}, pixel {pixel}: {n} patches: {heaviest}{more}; "
            f"rest {self.rest:.3f}; ESS {self.ess:.4g}; {self.method})"
        )


@dataclass(frozen=True, repr=False)
class Attributions(Sequence[Attribution]):
    """The `Attribution` of each of M pixels, and the same numbers as arrays.

    Attributes
    ----------
    sample : numpy.ndarray, shape (M,), int64
        Number of the noisy image in the batch: all pixels of image 0, then of image 1, ...
    pixel : numpy.ndarray, shape (M, 2), int64
        The pixels, (y, x).
    image, y, x, label : numpy.ndarray, shape (M, top), int64
        As in `Attribution`; -1 where a pixel is compared with fewer than `top` patches.
    weight : numpy.ndarray, shape (M, top), float64
        As in `Attribution`; 0 where there is no patch.
    rest, ess, entropy, captured_mass, relative_error : numpy.ndarray, shape (M,), float64
        As in `Attribution`.
    method : str
        As in `Attribution`.
    file_names : dict of int to str
        File names of the training images by their numbers; empty when the images are no files.
    noisy : Tensor, shape (B, C, H, W), float32
        The noisy images.
    t, k, training
        As in `Attribution`.
    """

    sample: np.ndarray
    pixel: np.ndarray
    image: np.ndarray
    y: np.ndarray
    x: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    rest: np.ndarray
    ess: np.ndarray
    entropy: np.ndarray
    captured_mass: np.ndarray
    relative_error: np.ndarray
    method: str
    file_names: Mapping[int, str]
    noisy: Tensor
    t: float
    k: int | None
    training: TrainingImages

    @classmethod
    def of(
        cls,
        found: HeaviestPatches,
        pixels: np.ndarray,
        noisy: Tensor,
        t: float,
        k: int | None,
        training: TrainingImages,
    ) -> Attributions:
        """Name the patches of the pixels (n, 2) of each noisy image by the numbers of the source."""
        number, place = found.image.cpu().numpy(), found.place.cpu().numpy()
        there, width = number >= 0, training.size[1]
        labels = np.full(len(training), -1) if training.labels is None else training.labels
        one = {
            name: getattr(found, name).cpu().numpy()
            for name in ("weight", "rest", "ess", "entropy", "captured_mass", "relative_error")
        }
        image = np.where(there, training.source_ids[number], -1)
        used = np.unique(image[there]) if training.has_names else np.empty(0, np.int64)
        return cls(
            sample=np.repeat(np.arange(len(noisy)), len(pixels)),
            pixel=np.tile(pixels, (len(noisy), 1)),
            image=image,
            y=np.where(there, place // width, -1),
            x=np.where(there, place % width, -1),
            label=np.where(there, labels[number], -1),
            **one,
            method=found.method,
            file_names=dict(zip(used.tolist(), training.image_names(used), strict=True)),
            noisy=noisy.cpu(),
            t=t,
            k=k,
            training=training,
        )

    def __len__(self) -> int:
        return len(self.sample)

    @overload
    def __getitem__(self, index: int) -> Attribution: ...
    @overload
    def __getitem__(self, index: slice) -> list[Attribution]: ...
    def __getitem__(self, index: int | slice) -> Attribution | list[Attribution]:
        """Return the attribution of one pixel, or of several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        there = self.image[index] >= 0
        return Attribution(
            sample=int(self.sample[index]),
            pixel=(int(self.pixel[index, 0]), int(self.pixel[index, 1])),
            image=self.image[index][there],
            y=self.y[index][there],
            x=self.x[index][there],
            label=self.label[index][there],
            weight=self.weight[index][there],
            rest=float(self.rest[index]),
            ess=float(self.ess[index]),
            entropy=float(self.entropy[index]),
            captured_mass=float(self.captured_mass[index]),
            relative_error=float(self.relative_error[index]),
            method=self.method,
            name=tuple(self.file_names.get(n, "") for n in self.image[index][there].tolist()),
            noisy=self.noisy[self.sample[index]],
            t=self.t,
            k=self.k,
            training=self.training,
        )

    def __iter__(self) -> Iterator[Attribution]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Attributions({len(self)} pixels, {self.weight.shape[1]} patches each, {self.method})"


def check_top(top: int, pixels: int) -> None:
    """Refuse a number of patches per pixel that is below 1, or takes more memory than the process may use."""
    check_least(top=(top, 1))
    need, limit = PATCH_BYTES * top * pixels, memory_limit()
    if need > limit:
        raise InputError(
            f"{top} patches for each of {pixels} pixels take {need / 2**30:,.1f} GiB, and this process may "
            f"use {limit / 2**30:,.1f}",
            parameter="top",
            remedy="use fewer patches, or fewer pixels at a time",
        )


def check_pixels(pixels: Any, size: tuple[int, int]) -> np.ndarray:
    """Return pixels (y, x) as an array (n, 2), all in raster order for None; refuse what is no pixel."""
    if pixels is None:
        return np.indices(size).reshape(2, -1).T
    remedy = f"give pairs (y, x) from (0, 0) to ({size[0] - 1}, {size[1] - 1})"
    given = pixels.tolist() if isinstance(pixels, np.ndarray | Tensor) else pixels
    given = list(given) if isinstance(given, Iterable) else [given]
    if len(given) == 2 and all(map(is_whole, given)):
        given = [given]
    for pair in given:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(map(is_whole, pair)):
            raise InputError(f"{pair!r} is not a pixel", parameter="pixels", remedy=remedy)
        if not all(0 <= value < n for value, n in zip(pair, size, strict=True)):
            raise InputError(f"{tuple(pair)} is outside the image", parameter="pixels", remedy=remedy)
    if not given:
        raise InputError("is empty", parameter="pixels", remedy=remedy)
    return np.array(given, np.int64)
