"""The names of denoisers, and `denoiser`, which makes a denoiser from training images."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from patchindex.checks import is_name_in
from patchindex.denoisers.from_images import DenoiserOptions, TrainingDenoiser, is_store, refuse_labels
from patchindex.denoisers.machine import ScoreMachine
from patchindex.errors import InputError
from patchindex.images import ImagesLike, LabelsLike
from patchindex.index import PatchIndex, open_index
from patchindex.options import read_text
from patchindex.schedules import LocalityLike

__all__ = ["DENOISERS", "denoiser", "parse_denoiser", "register_denoiser", "takes_locality"]

Factory = Callable[..., TrainingDenoiser]
F = TypeVar("F", bound=Factory)

DENOISERS: dict[str, Factory] = {}


def register_denoiser(name: str) -> Callable[[F], F]:
    """Return a decorator that registers a class, or a function that makes a denoiser, under a name.

    The class or function is called as `factory(source, labels, **options)`, and returns a
    `TrainingDenoiser`. Its own parameters of type bool, int, float or str are its options on the command
    line: `NAME:OPTION=VALUE`.

    Parameters
    ----------
    name : str
        The name for `denoiser` and for `--machine`.

    Returns
    -------
    callable
        The decorator, which returns the class or function as it is.

    Raises
    ------
    InputError
        When the name is taken.

    Examples
    --------
    >>> import numpy as np
    >>> from patchindex.denoisers import NearestImage
    >>> @register_denoiser("closest")
    ... class Closest(NearestImage):
    ...     pass
    >>> type(denoiser("closest", np.zeros((4, 8, 8), np.uint8)))
    <class 'patchindex.denoisers.registry.Closest'>
    >>> del DENOISERS["closest"]
    """

    def register(factory: F) -> F:
        if DENOISERS.get(name, factory) is not factory:
            raise InputError(f"{name!r} is taken", parameter="name", remedy="use another name")
        DENOISERS[name] = factory
        return factory

    return register


def parse_denoiser(text: str, parameter: str = "machine") -> tuple[str, dict[str, Any]]:
    """Read the name and the options of a denoiser; errors name `parameter`.

    The options that all denoisers share, such as `noise`, are not given in the text.

    Raises
    ------
    InputError
        When the name or an option is unknown, or a value has the wrong type.

    Examples
    --------
    >>> parse_denoiser("wiener:circulant=true")
    ('wiener', {'circulant': True})
    """
    hidden = {*DenoiserOptions.__annotations__}
    return read_text(text, DENOISERS, parameter=parameter, entry="denoiser", hidden=hidden)


def takes_locality(name: str) -> bool:
    """Return whether a registered denoiser has a locality schedule. IS has none: it compares whole images."""
    return name != "IS" and "locality" in inspect.signature(DENOISERS[name]).parameters


def denoiser(
    name: str, source: PatchIndex | ImagesLike, labels: LabelsLike | None = None, **options: Any
) -> TrainingDenoiser:
    """Return the denoiser of this name for a set of training images.

    Parameters
    ----------
    name : str
        One of `DENOISERS`: a score machine (`"IS"`, `"LS"`, `"ELS"`, `"bbELS"`) or another analytic denoiser.
    source : PatchIndex, or anything `open_images` takes
        A patch index (or its path), or raw images. A score machine that is not the machine of the index, or
        has other training windows, is computed exactly from the images of the index.
    labels : array of int or path, optional
        Labels of raw images, shape (N,). An index has its own.
    **options
        Of the denoiser, such as `noise`, `label` and `locality`. Every name accepts `locality`, so that all
        denoisers of a comparison take the same options; a denoiser without a locality scale does not use it.

    Raises
    ------
    InputError
        When the name or an option is unknown, or an option does not fit the images.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    >>> for name in ("LS", "IS", "wiener"):
    ...     print(denoiser(name, images, locality=3))
    ScoreMachine(1 x 8 x 8, noise=cosine, machine=LS, estimator=exact, scales=[3])
    ScoreMachine(1 x 8 x 8, noise=cosine, machine=IS, estimator=exact)
    Wiener(1 x 8 x 8, noise=cosine)
    """
    if not is_name_in(name, DENOISERS):
        raise InputError(
            f"unknown denoiser {name!r}", parameter="name", remedy=f"use one of {', '.join(DENOISERS)}"
        )
    if not takes_locality(name):
        options.pop("locality", None)
    known = _options_of(DENOISERS[name])
    for option in options:
        if known is not None and option not in known:
            raise InputError(
                f"{name} has no option {option!r}", remedy=f"its options are {', '.join(sorted(known))}"
            )
    return DENOISERS[name](source, labels, **options)


def _options_of(factory: Factory) -> set[str] | None:
    """Return the options that a class takes, with the options it hands on; None where they are unknown."""
    if not inspect.isclass(factory):
        return None
    found: set[str] = set()
    for each in inspect.getmro(factory):
        if "__init__" in vars(each):
            parameters = inspect.signature(vars(each)["__init__"]).parameters.values()
            found |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                return found - {"self", "source", "labels"}
    return None


def _machine(machine: str) -> Factory:
    def make(
        source: PatchIndex | ImagesLike,
        labels: LabelsLike | None = None,
        *,
        estimator: str | None = None,
        tolerance: float | None = None,
        train_windows: str | None = None,
        locality: LocalityLike | None = None,
        **options: Any,
    ) -> ScoreMachine:
        if "machine" in options:
            raise InputError(
                f"is {machine} by the name of the denoiser", parameter="machine", remedy="leave it out"
            )
        if is_store(source):
            source = open_index(source, device=options.get("device"))
        if isinstance(source, PatchIndex):
            refuse_labels(labels)
            locality = source.locality if locality is None else locality
            if source.machine != machine or train_windows not in (None, source.train_windows):
                source.check_images(0, len(source.training))  # nothing else compares them with checksums
                source = source.training.in_source_order()  # which numbers the images as the user did
        if tolerance is not None:
            options["tolerance"] = tolerance
        return ScoreMachine(
            source,
            labels,
            machine=machine,
            train_windows=train_windows,
            estimator=estimator,
            locality=locality,
            **options,
        )

    return make


for _name in ("IS", "LS", "ELS", "bbELS"):
    register_denoiser(_name)(_machine(_name))
