"""The names of denoisers, and `denoiser`, which makes one from training images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from patchindex.denoisers.base import TrainingDenoiser, is_store
from patchindex.denoisers.machine import ScoreMachine
from patchindex.errors import InputError
from patchindex.images import ImagesLike, LabelsLike
from patchindex.index import PatchIndex, open_index

__all__ = ["DENOISERS", "denoiser", "register_denoiser"]

Factory = Callable[..., TrainingDenoiser]
F = TypeVar("F", bound=Factory)

DENOISERS: dict[str, Factory] = {}


def register_denoiser(name: str) -> Callable[[F], F]:
    """Return a decorator that registers a class, or a function that makes a denoiser, under a name.

    The class is called as `factory(source, labels, **options)`, and returns a `TrainingDenoiser`.

    Raises
    ------
    InputError
        When the name is taken.
    """

    def register(factory: F) -> F:
        if DENOISERS.get(name, factory) is not factory:
            raise InputError(f"{name!r} is taken", parameter="name", remedy="use another name")
        DENOISERS[name] = factory
        return factory

    return register


def denoiser(
    name: str, source: PatchIndex | ImagesLike, labels: LabelsLike | None = None, **options: Any
) -> TrainingDenoiser:
    """Return the denoiser of this name for a set of training images.

    Parameters
    ----------
    name : str
        One of `DENOISERS`: a score machine (`"IS"`, `"LS"`, `"ELS"`, `"bbELS"`) or another analytic denoiser.
    source : PatchIndex, or anything `open_images` takes
        A patch index (or its path), or raw images. A score machine that is not the machine of the index is
        computed exactly, from the images of the index.
    labels : array of int or path, optional
        Labels of raw images, shape (N,). An index has its own.
    **options
        Of the denoiser, such as `noise`, `label` and `locality`.

    Raises
    ------
    InputError
        When the name or an option is unknown, or an option does not fit the images.

    Examples
    --------
    >>> import numpy as np, torch
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    >>> ideal = denoiser("IS", images)
    >>> ideal.posterior_mean(torch.randn(1, 1, 8, 8), 0.5).mean.shape
    torch.Size([1, 1, 8, 8])
    """
    if name not in DENOISERS:
        raise InputError(
            f"unknown denoiser {name!r}", parameter="name", remedy=f"use one of {', '.join(DENOISERS)}"
        )
    return DENOISERS[name](source, labels, **options)


def _machine(machine: str) -> Factory:
    def make(
        source: PatchIndex | ImagesLike, labels: LabelsLike | None = None, **options: Any
    ) -> ScoreMachine:
        if is_store(source):
            source = open_index(source, device=options.get("device"))
        if isinstance(source, PatchIndex) and source.machine != machine:
            if options.get("locality") is None:
                options["locality"] = source.locality
            source = source.training.source
        return ScoreMachine(source, labels, machine=machine, **options)

    return make


for _name in ("IS", "LS", "ELS", "bbELS"):
    register_denoiser(_name)(_machine(_name))
