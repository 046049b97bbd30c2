"""`Wiener`: the posterior mean of a Gaussian with the moments of the training images."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Unpack

import torch
from torch import Tensor

from patchindex.denoisers.base import Call
from patchindex.denoisers.from_images import DenoiserOptions, TrainingDenoiser
from patchindex.denoisers.moments import image_moments
from patchindex.denoisers.registry import register_denoiser
from patchindex.devices import float64_device, to_float64
from patchindex.errors import InputError, Option
from patchindex.estimators import Estimate
from patchindex.images import ImagesLike, LabelsLike
from patchindex.images.by_label import TrainingImages, as_tensor, read_ahead, to_unit
from patchindex.index import PatchIndex
from patchindex.runtime import PicklableLock, Progress

__all__ = ["DenseGaussian", "GaussianDenoiser", "Wiener"]

DEFAULT_MEMORY = 1 << 30  # bytes: the covariance of 32 x 32 x 3 numbers takes 288 MiB with its decomposition
STAGE = "decomposition of the covariance"


class GaussianDenoiser(TrainingDenoiser):
    """A denoiser that is made of Gaussians of whole images; it keeps their decompositions by label."""

    _default_memory = DEFAULT_MEMORY
    _needs_less_memory: Sequence[str | Option] = ("smaller images",)
    circulant = False

    def __init__(
        self,
        source: PatchIndex | ImagesLike,
        labels: LabelsLike | None = None,
        **options: Unpack[DenoiserOptions],
    ) -> None:
        super().__init__(source, labels, **options)
        self._filters: OrderedDict[int | None, _Filter] = OrderedDict()
        self._making = PicklableLock()
        self._check_memory(self.label)

    def _check_memory(self, label: int | None) -> None:
        """Refuse a covariance that is too large for the memory."""
        if self.circulant:
            return
        needed, (channels, height, width) = self._needed(label), self.shape
        if needed > self._memory:
            numbers = channels * height * width
            raise InputError(
                f"the covariance of {numbers:,} numbers per image needs {_size(needed)}, more than the "
                f"{_size(self._memory)} allowed",
                parameter="memory",
                remedy=["give more, or use ", *self._needs_less_memory],
            )

    def _needed(self, label: int | None) -> int:
        """Return the bytes that the decomposition of the covariance takes."""
        lo, hi = self.training.range_of(label)
        numbers = self.training.channels * self.training.size[0] * self.training.size[1]
        return min(_covariance_bytes(numbers), _gram_bytes(hi - lo, numbers))

    def _prepare(self, label: int | None, progress: Progress) -> None:
        self._filter(label, progress)

    def _filter(self, label: int | None, progress: Progress) -> _Filter:
        """Return the filter of a label; make it if it is not kept."""
        with self._making:
            if label not in self._filters:
                self._check_memory(label)
                room = self._memory - (0 if self.circulant else self._needed(label))
                while self._filters and sum(each.bytes for each in self._filters.values()) > room:
                    self._filters.popitem(last=False)
                make = _Circulant.of if self.circulant else DenseGaussian.of
                where = float64_device(self.device)
                self._filters[label] = make(self.training, label, where, self._memory, progress)
            self._filters.move_to_end(label)
            return self._filters[label]


@register_denoiser("wiener")
class Wiener(GaussianDenoiser):
    """A whole-image Gaussian denoiser.

        mu = m + a S (a^2 S + beta I)^-1 (x - a m),    a = sqrt(1 - beta)

    m and S are the mean and the covariance of all training images (of the label). The Gaussian with these
    moments has this posterior mean, the Wiener filter of x. (Wang & Vastola, arXiv 2412.09726; Li, Dai & Qu,
    arXiv 2410.24060.) The computation is in float64, on the CPU where the device has no float64.

    Parameters
    ----------
    source, labels
        As for `TrainingDenoiser`.
    circulant : bool
        Use the moments of all cyclic shifts of the training images instead: the mean of each channel, and a
        covariance that depends on the displacement of two pixels only, which is diagonal in the Fourier
        basis. The denoiser then commutes with cyclic shifts.
    **options
        `noise`, `label`, `device`, `threads` and `memory`, as for `TrainingDenoiser`. The default of `memory`
        on the CPU is 1 GiB.

    Raises
    ------
    InputError
        When a setting is unknown, or when the covariance needs more memory than `memory`: 32 D^2 bytes for D
        numbers per image, or about 16 N D + 32 N^2 bytes for N images if that is less. `circulant` needs
        little.

    Notes
    -----
    The first call with a label, or `prepare`, reads the training images once and decomposes S: seconds for
    D = 784, minutes for 50 000 images with D = 3072 on one core. After that a call takes two matrix products.
    The decompositions of several labels are kept while they and the next decomposition fit into `memory`.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    >>> wiener = Wiener(images)
    >>> e = wiener.posterior_mean(torch.randn(2, 1, 8, 8), 0.5)
    >>> e.mean.shape, e.patches_evaluated, bool(e.ess.isnan().all())
    (torch.Size([2, 1, 8, 8]), 0, True)
    """

    _needs_less_memory = (Option("circulant", True), " or smaller images")

    def __init__(
        self,
        source: PatchIndex | ImagesLike,
        labels: LabelsLike | None = None,
        *,
        circulant: bool = False,
        **options: Unpack[DenoiserOptions],
    ) -> None:
        self.circulant = bool(circulant)
        super().__init__(source, labels, **options)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the denoiser, as plain data."""
        return {**super().settings, "circulant": self.circulant}

    def _estimate(self, x: Tensor, beta: float, call: Call) -> Estimate:
        mean = self._filter(call.label, call.progress).apply(to_float64(x), beta).float()
        one = torch.ones_like(mean[:, 0])
        call.progress("posterior mean", 1, 1)
        return Estimate(mean, stderr=0 * one, ess=torch.nan * one, captured_mass=one, patches_evaluated=0)


class _Filter(Protocol):
    """The decomposition of a covariance."""

    @property
    def bytes(self) -> int: ...

    def apply(self, x: Tensor, beta: float) -> Tensor: ...


def _gain(variances: Tensor, beta: float) -> Tensor:
    """Return a l / (a^2 l + beta) for the variances l of the components; no division by a."""
    a = (1 - beta) ** 0.5
    return a * variances / (a * a * variances + beta)


@dataclass(frozen=True)
class DenseGaussian:
    """A Gaussian of flattened images: its mean, the components of positive variance, and their variances."""

    mean: Tensor  # (D,)
    basis: Tensor  # (D, components)
    variances: Tensor  # (components,)

    @property
    def bytes(self) -> int:
        """Bytes of the arrays."""
        return 8 * (len(self.mean) + self.basis.numel() + len(self.variances))

    @classmethod
    def of(
        cls,
        training: TrainingImages,
        label: int | None,
        device: torch.device,
        memory: int,
        progress: Progress,
    ) -> DenseGaussian:
        """Return the Gaussian with the moments of the training images of a label."""
        lo, hi = training.range_of(label)
        numbers, count = training.channels * training.size[0] * training.size[1], hi - lo
        if _gram_bytes(count, numbers) < _covariance_bytes(numbers):
            return cls._of_gram(training, lo, hi, device, progress)
        m = image_moments(training, label, device=device, memory=memory // 4, progress=progress)
        progress(STAGE, 0, 1)
        variances, basis = torch.linalg.eigh(m.covariance)
        progress(STAGE, 1, 1)
        kept = variances > len(m.mean) * torch.finfo(torch.float64).eps * variances[-1]
        return cls(m.mean, basis[:, kept].contiguous(), variances[kept])

    @classmethod
    def _of_gram(
        cls, training: TrainingImages, lo: int, hi: int, device: torch.device, progress: Progress
    ) -> DenseGaussian:
        """Decompose the N x N products of images, which give the same components."""
        count = hi - lo
        pixels = to_unit(as_tensor(training.read(lo, hi), device), torch.float64)
        pixels = pixels.permute(0, 3, 1, 2).flatten(1)
        mean = pixels.mean(0)
        pixels -= mean
        progress(STAGE, 0, 1)
        variances, vectors = torch.linalg.eigh(pixels @ pixels.T / count)
        kept = variances > count * torch.finfo(torch.float64).eps * variances[-1]
        variances = variances[kept]
        basis = pixels.T @ vectors[:, kept] / (count * variances).sqrt()
        progress(STAGE, 1, 1)
        return cls(mean, basis, variances)

    def apply(self, x: Tensor, beta: float) -> Tensor:
        """Return the posterior mean of noisy images, in float64."""
        a = (1 - beta) ** 0.5
        shift = (x.flatten(1) - a * self.mean) @ self.basis * _gain(self.variances, beta)
        return (self.mean + shift @ self.basis.T).reshape(x.shape)

    def log_density(self, x: Tensor, beta: float) -> Tensor:
        """Return the logarithm of the density of noisy images, (B,), up to a number that is the same for all.

        `log N(x; a m, a^2 S + beta I)`, without `-D / 2 log(2 pi)`.
        """
        a, numbers = (1 - beta) ** 0.5, len(self.mean)
        residual = x.flatten(1) - a * self.mean
        inside = residual @ self.basis
        variances = a * a * self.variances + beta
        outside = (residual.square().sum(1) - inside.square().sum(1)).clamp_min(0) / beta
        logs = variances.log().sum() + (numbers - len(variances)) * math.log(beta)
        return -0.5 * ((inside.square() / variances).sum(1) + outside + logs)


@dataclass(frozen=True)
class _Circulant:
    """The covariance of all cyclic shifts: C x C at each frequency, decomposed."""

    mean: Tensor  # (C,)
    basis: Tensor  # (H, W // 2 + 1, C, C), complex
    variances: Tensor  # (H, W // 2 + 1, C)

    @property
    def bytes(self) -> int:
        return 16 * self.basis.numel() + 8 * self.variances.numel()

    @classmethod
    def of(
        cls,
        training: TrainingImages,
        label: int | None,
        device: torch.device,
        memory: int,
        progress: Progress,
    ) -> _Circulant:
        """Average the products of Fourier coefficients over the images, H W times the covariance."""
        lo, hi = training.range_of(label)
        (height, width), channels = training.size, training.channels
        pixels = height * width
        total = torch.zeros(channels, dtype=torch.float64, device=device)
        products = torch.zeros(
            (height, width // 2 + 1, channels, channels), dtype=torch.complex128, device=device
        )
        done = 0
        step = max(1, memory // (pixels * channels * 80))
        with read_ahead(training.blocks(lo, hi, step)) as blocks:
            for block in blocks:
                values = to_unit(as_tensor(block, device), torch.float64)
                total += values.sum((0, 1, 2))
                waves = torch.fft.rfft2(values, dim=(1, 2)).permute(1, 2, 3, 0)
                products += waves @ waves.mH
                done += len(block)
                progress("image moments", done, hi - lo)
        mean = total / ((hi - lo) * pixels)
        products /= (hi - lo) * pixels
        products[0, 0] -= pixels * torch.outer(mean, mean)
        variances, basis = torch.linalg.eigh(products)
        return cls(mean, basis, variances.clamp_min(0))

    def apply(self, x: Tensor, beta: float) -> Tensor:
        a = (1 - beta) ** 0.5
        mean = self.mean[:, None, None]
        waves = torch.fft.rfft2(x - a * mean).permute(2, 3, 1, 0)  # (H, W // 2 + 1, C, B)
        waves = self.basis @ (_gain(self.variances, beta).unsqueeze(-1) * (self.basis.mH @ waves))
        return mean + torch.fft.irfft2(waves.permute(3, 2, 0, 1), s=x.shape[2:])


def _covariance_bytes(numbers: int) -> int:
    """Return the bytes of a covariance, its components, and the scratch arrays of the decomposition."""
    return 32 * numbers**2


def _gram_bytes(images: int, numbers: int) -> int:
    return 16 * images * numbers + 32 * images**2


def _size(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1024:.1f} KiB"
