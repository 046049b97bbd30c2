"""The contract of denoisers that are computed from training images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeGuard

import torch

from patchindex.build import parse_memory
from patchindex.denoisers.arguments import Label
from patchindex.denoisers.base import Denoiser
from patchindex.devices import memory_budget, resolve_devices
from patchindex.errors import InputError, Option
from patchindex.exact.request import WORKING_MEMORY
from patchindex.images import ImagesLike, LabelsLike
from patchindex.images.by_label import TrainingImages
from patchindex.index import PatchIndex, open_index
from patchindex.index.layout import read_attributes
from patchindex.runtime import check_threads
from patchindex.schedules import NoiseSchedule
from patchindex.store.remote import Remote, is_url

__all__ = ["DenoiserOptions", "TrainingDenoiser", "is_store"]


class DenoiserOptions(TypedDict, total=False):
    """Options of every `TrainingDenoiser`, for type checkers."""

    noise: str | NoiseSchedule
    label: Label | None
    device: str | torch.device | None
    threads: int | None
    memory: int | str | None


def refuse_labels(labels: object) -> None:
    """Refuse labels that are given with a store, which has its own."""
    if labels is not None:
        raise InputError(
            "is fixed in the store", parameter="labels", remedy="leave it out, or give the images themselves"
        )


class TrainingDenoiser(Denoiser):
    """A denoiser that is computed from training images.

    Parameters
    ----------
    source : PatchIndex, or anything `open_images` takes
        A patch index (or its path), or raw images. All images of a label are used.
    labels : array of int or path, optional
        Labels of raw images, shape (N,). An index has its own.
    noise, label, device, threads
        As for `Denoiser`.
    memory : int or str, optional
        Bytes for temporary arrays, or a size such as `"1G"`. The default on the CPU is 256 MiB. On a GPU the
        default, and the most, is 0.4 of the memory that is free when a call begins.

    Attributes
    ----------
    index : PatchIndex or None
    training : TrainingImages

    Raises
    ------
    InputError
        When a setting is unknown or does not fit the images or the index.
    """

    _default_memory = WORKING_MEMORY  # on the CPU

    def __init__(
        self,
        source: PatchIndex | ImagesLike,
        labels: LabelsLike | None = None,
        *,
        noise: str | NoiseSchedule = "cosine",
        label: Label | None = None,
        device: str | torch.device | None = None,
        threads: int | None = None,
        memory: int | str | None = None,
    ) -> None:
        check_threads(threads)
        if is_store(source):
            source = open_index(source, device=resolve_devices(device)[0])
        if isinstance(source, PatchIndex):
            refuse_labels(labels)
            self.index: PatchIndex | None = source
            self.training = source.training
        else:
            self.index, self.training = None, TrainingImages(source, labels)
        self._memory_given = None if memory is None else parse_memory(memory)
        shape = (self.training.channels, *self.training.size)
        super().__init__(shape, noise=noise, label=label, device=device, threads=threads)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the images of a store, which opens again by its path."""
        return {name: value for name, value in vars(self).items() if self.index is None or name != "training"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the images from the store."""
        vars(self).update(state)
        if self.index is not None:
            self.training = self.index.training

    @property
    def devices(self) -> Sequence[torch.device]:
        """The devices that compute; `device` is the first."""
        return (self.device,)

    @property
    def _memory(self) -> int:
        """Bytes for temporary arrays, on each device."""
        return memory_budget(self.devices, self._memory_given, self._default_memory)

    @property
    def _if_out_of_memory(self) -> Sequence[str | Option]:
        return ["use a smaller ", Option("memory"), " or ", Option("batch_size")]

    @property
    def _if_not_finite(self) -> str:
        return "check the images" if self.index is None else "check the store with patchindex verify"

    @property
    def _if_diverged(self) -> Sequence[str | Option]:
        # No posterior mean of images grows faster than x: a trajectory diverges when the steps are too long.
        return ["use more ", Option("steps"), ", or ", Option("sampler", "ddim")]

    @property
    def label_names(self) -> Sequence[str] | None:  # type: ignore[override]
        """Names of the labels 0, 1, ..., None if they have none."""
        return self.training.source.label_names

    def check_label(self, label: int | None) -> None:
        """Refuse a label that no training image has."""
        self.training.range_of(label)

    def _check_images(self, label: int | None) -> None:
        if self.index is not None:
            self.index.check_images(*self.training.range_of(label))


def is_store(source: Any) -> TypeGuard[str | Path]:
    """Return whether a source is the path or URL of a store, rather than of images."""
    if is_url(source):
        return Remote(source).is_store()
    return isinstance(source, str | Path) and read_attributes(Path(source)) is not None
