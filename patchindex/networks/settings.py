"""Settings of a training run, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from patchindex.checks import check_least, check_optional, is_name_in, is_real
from patchindex.errors import InputError, Option
from patchindex.schedules import NOISE_SCHEDULES
from patchindex.store.text_files import as_json

__all__ = ["PRECISIONS", "OtherRunError", "TrainSettings"]

PRECISIONS = ("float32", "bfloat16")
EPOCHS = 300
LIMITS = ("epochs", "steps", "minutes")  # a resumed run may have other limits


class OtherRunError(InputError):
    """The run to resume has other settings or images."""


@dataclass(frozen=True)
class TrainSettings:
    """The settings of a training run; the defaults are the recipe of Kamb & Ganguli (arXiv 2412.20292).

    Attributes
    ----------
    arch : str
        One of `patchindex.networks.ARCHITECTURES`.
    options : mapping
        Options of the architecture, such as `{"channels": 64}`.
    conditional : bool
        Train a network with class labels.
    noise : str
        Noise schedule, one of `NOISE_SCHEDULES`.
    lr, lr_decay : float
        Learning rate of AdamW, and the factor that multiplies it after each step.
    batch_size : int
    epochs, steps, minutes : optional
        The first limit that is reached ends the training; 300 epochs without any limit. `minutes` counts the
        time of all parts of a run that was resumed.
    ema : float, optional
        Decay of an exponential moving average of the weights, such as 0.999. The average is the result.
    precision : str
        `"float32"`, or `"bfloat16"` for mixed precision by `torch.autocast`; the weights are float32.
    validation : int
        Number of images, the last of the source, that are held out to measure the loss on.
    seed : int
        Seed of the weights, the order of the images, the times and the noise.

    Raises
    ------
    InputError
        When a value is out of range.

    Examples
    --------
    >>> TrainSettings(options={"channels": 64}, minutes=40).epochs is None
    True
    """

    arch: str = "resnet"
    options: Mapping[str, Any] = field(default_factory=dict)
    conditional: bool = False
    noise: str = "cosine"
    lr: float = 1e-4
    lr_decay: float = 0.999965
    batch_size: int = 128
    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None
    ema: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    validation: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.options, Mapping):
            raise InputError(
                f"must be a mapping, got {self.options!r}",
                parameter="options",
                remedy="give {'channels': 64}, for example",
            )
        object.__setattr__(self, "options", MappingProxyType(as_json(self.options)))
        if all(getattr(self, name) is None for name in LIMITS):
            object.__setattr__(self, "epochs", EPOCHS)
        if not is_name_in(self.noise, NOISE_SCHEDULES):
            raise InputError(
                f"unknown noise schedule {self.noise!r}",
                parameter="noise",
                remedy=f"use {', '.join(sorted(NOISE_SCHEDULES))}",
            )
        if not is_name_in(self.precision, PRECISIONS):
            raise InputError(
                f"unknown precision {self.precision!r}",
                parameter="precision",
                remedy=f"use {' or '.join(PRECISIONS)}",
            )
        check_least(batch_size=(self.batch_size, 1), validation=(self.validation, 0), seed=(self.seed, 0))
        check_optional(epochs=(self.epochs, 1), steps=(self.steps, 1))
        _check_real("lr", self.lr, 0, math.inf)
        _check_real("lr_decay", self.lr_decay, 0, 1, closed=True)
        if self.minutes is not None:
            _check_real("minutes", self.minutes, 0, math.inf)
        if self.ema is not None:
            _check_real("ema", self.ema, 0, 1)
        found = as_json({name: getattr(self, name) for name in self.__annotations__ if name != "options"})
        for name, value in found.items():  # numbers of NumPy become Python numbers
            object.__setattr__(self, name, value)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON data."""
        return {**{name: getattr(self, name) for name in self.__annotations__}, "options": dict(self.options)}

    def check_resumed(self, before: Mapping[str, Any], where: object) -> None:
        """Refuse settings that differ from the settings `before` of an unfinished run, except its limits."""
        now, then = _flat(self.to_json()), _flat(before)
        for name in (*now, *before.get("options", {})):
            if name not in LIMITS and now.get(name) != then.get(name):
                raise OtherRunError(
                    f"the run has {then.get(name)!r}, not {now.get(name)!r}",
                    parameter=name,
                    remedy=["give the same settings, or replace ", str(where), " with ",
                            Option("overwrite", True)],
                )  # fmt: skip


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the options of the architecture among them, so that errors name the option."""
    flat = {**settings, **settings.get("options", {})}
    flat.pop("options", None)
    return flat


def _check_real(name: str, value: Any, above: float, below: float, *, closed: bool = False) -> None:
    if not (is_real(value) and above < value and (value <= below if closed else value < below)):
        bounds = f"above {above:g}" + (
            f" and {'at most' if closed else 'below'} {below:g}" if below < math.inf else ""
        )
        raise InputError(f"must be {bounds}, got {value!r}", parameter=name, remedy="use another number")
