"""Locality schedules: the locality scale k as a function of the noise variance beta."""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patchindex.checks import accessing, check_least, is_whole, path_exists
from patchindex.errors import (
    InputError,
    Option,
    OutputExistsError,
    PatchIndexWarning,
    SourceNotFoundError,
    warn,
)
from patchindex.regular_files import IrregularFileError, read_regular
from patchindex.schedules.checks import problem_of_pairs, problem_of_quartiles, problem_of_scale
from patchindex.schedules.noise import NoiseSchedule, cosine, noise_schedule
from patchindex.schedules.presets import LOCALITY_PRESETS, PUBLISHED, Provenance, provenance_of

__all__ = ["LOCALITY_PRESETS", "LocalityLike", "LocalitySchedule", "Provenance", "noise_levels"]

STEPS = 20  # of the paper's sampling grid
FILE_VERSION = 1
MOST_BYTES = 1 << 22  # of a file; a schedule of a thousand pairs with quartiles takes less than 2^18


@dataclass(frozen=True)
class LocalitySchedule:
    """The locality scale k at every noise variance beta, given by pairs (beta, k).

    At any other beta, k is the scale of the nearest pair. The distance of two noise variances is the
    difference of their angles `arcsin(sqrt(beta))`, where `x_t = cos(angle) x_0 + sin(angle) eps`. Halfway
    between two pairs, the pair with the even number holds, counted from 1.

    The angle of the cosine noise schedule is proportional to t. So n scales by time of the cosine schedule
    are looked up as `scales[clip(round(n t), 1, n - 1)]`.

    Attributes
    ----------
    name : str
        Name of the preset or of the file, or `"custom"`.
    pairs : tuple of (float, int)
        Noise variances in (0, 1), ascending, and their scales, odd and at least 1.
    provenance : Provenance, optional
        The network and the images that the scales were calibrated on.
    quartiles : tuple of (float, float), optional
        For each pair, the quartiles of the scales that were measured.

    Raises
    ------
    InputError
        When the pairs or the quartiles have a wrong form.

    Examples
    --------
    >>> s = LocalitySchedule.of("cifar10-resnet-circular")
    >>> s.k(0.01), s.k(0.5), s.k(0.99)
    (3, 7, 15)
    >>> s.distinct
    (3, 5, 7, 9, 11, 13, 15)
    >>> s.provenance.network
    'ResNet with circular padding, class-conditional'
    """

    name: str
    pairs: tuple[tuple[float, int], ...]
    provenance: Provenance | None = None
    quartiles: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self) -> None:
        problem = problem_of_pairs(self.pairs) or problem_of_quartiles(self.quartiles, len(self.pairs))
        if problem is not None:
            raise InputError(problem, parameter="locality", remedy="give pairs such as (0.25, 5), (0.75, 9)")
        object.__setattr__(self, "pairs", tuple((float(beta), int(k)) for beta, k in self.pairs))
        if self.quartiles is not None:
            object.__setattr__(self, "quartiles", tuple((float(a), float(b)) for a, b in self.quartiles))

    @classmethod
    def of(cls, locality: LocalityLike, noise: str | NoiseSchedule = "cosine") -> LocalitySchedule:
        """Return the schedule that a name, a file, a list of scales or one scale stands for.

        Parameters
        ----------
        locality : str, path, int, sequence of int, or LocalitySchedule
            The name of a preset; a `.json` file of `save`; one scale for all noise; or n scales by time,
            lowest noise first. Entry i of a list holds at the time i / n; the first entry is never used, as
            in the paper's code.
        noise : str or callable
            The noise schedule that the times of a list belong to.

        Raises
        ------
        InputError
            When the preset is unknown, the file cannot be read, or a scale is even or below 1.

        Examples
        --------
        >>> LocalitySchedule.of([3, 3, 5, 7]).scales
        (3, 5, 7)
        """
        if isinstance(locality, LocalitySchedule):
            return locality
        if isinstance(locality, os.PathLike) or (isinstance(locality, str) and locality.endswith(".json")):
            return cls.load(locality)
        if isinstance(locality, str):
            if locality not in LOCALITY_PRESETS:
                raise InputError(
                    f"unknown preset {locality!r}",
                    parameter="locality",
                    remedy=f"use one of {', '.join(LOCALITY_PRESETS)}, or a .json file",
                )
            preset = cls.of(LOCALITY_PRESETS[locality])
            return replace(preset, name=locality, provenance=provenance_of(locality))
        try:
            entries = (int(locality),) if is_whole(locality) else tuple(locality)
        except TypeError:
            raise InputError(
                f"is no locality schedule: {locality!r}", parameter="locality", remedy="give a list of scales"
            ) from None
        if not entries:
            raise InputError("the schedule is empty", parameter="locality", remedy="give at least one scale")
        for k in entries:
            if (problem := problem_of_scale(k)) is not None:
                raise InputError(problem, parameter="locality", remedy="use 3, 5, 7, ...")
        n, beta = len(entries), noise_schedule(noise)
        times = [i / n for i in range(1, n)] or [0.5]
        return cls("custom", tuple(zip(map(beta, times), entries[1:] or entries, strict=True)))

    @property
    def scales(self) -> tuple[int, ...]:
        """The scale of each pair, lowest noise first."""
        return tuple(k for _, k in self.pairs)

    @property
    def distinct(self) -> tuple[int, ...]:
        """The scales in use, ascending: an index for this schedule must hold them."""
        return tuple(sorted(set(self.scales)))

    def k(self, beta: float) -> int:
        """Return the locality scale at noise variance beta in [0, 1]."""
        if not 0 <= beta <= 1:
            raise InputError(
                f"must lie in [0, 1], got {beta}", parameter="beta", remedy="give beta(t), not t"
            )
        angles = [_angle(each) for each, _ in self.pairs]
        angle = _angle(beta)
        above = bisect_right(angles, angle)
        if above in (0, len(angles)):
            return self.scales[min(above, len(angles) - 1)]
        lower, upper = angles[above - 1], angles[above]
        place = above + round((angle - lower) / (upper - lower), 9)  # so that rounding errors break no tie
        return self.scales[round(place) - 1]

    def betas(self, k: int) -> list[float]:
        """Return the noise variances at which the schedule uses scale k, ascending.

        Both the noise variances of the pairs and of the paper's sampling grid are searched.
        """
        every = {beta for beta, _ in self.pairs} | {cosine(i / STEPS) for i in range(1, STEPS)}
        return sorted(beta for beta in every if self.k(beta) == k)

    def nearest(self, scales: Iterable[int]) -> LocalitySchedule:
        """Return this schedule with every scale moved to the nearest of `scales`, the smaller one in a tie.

        Parameters
        ----------
        scales : iterable of int
            At least one locality scale.

        Raises
        ------
        InputError
            When there are no scales.

        Examples
        --------
        >>> LocalitySchedule.of("cifar10-resnet-circular").nearest([3, 7, 15]).scales[2::3]
        (3, 3, 7, 7, 15, 15)
        """
        ascending = sorted(scales)
        if not ascending:
            raise InputError("there are none", parameter="scales", remedy="give at least one scale")
        if set(self.distinct) <= set(ascending):
            return self
        moved = [min(ascending, key=lambda s: abs(s - k)) for k in self.scales]
        return self._with_scales(f"nearest-{'-'.join(map(str, ascending))}", moved)

    def resized(self, size: int | tuple[int, int]) -> LocalitySchedule:
        """Return this schedule for images of another size: odd scales nearest to k times the ratio of sizes.

        Parameters
        ----------
        size : int, or (height, width)
            The ratio of sizes is the square root of the ratio of areas. The smaller scale is taken in a tie.

        Raises
        ------
        InputError
            When the size of the images that the schedule was calibrated on is unknown.

        Examples
        --------
        >>> s = LocalitySchedule.of("fashion-mnist-resnet-zeros")
        >>> s.distinct, s.resized(28).distinct
        ((3, 5, 7, 9, 11, 13, 15, 17), (3, 5, 7, 9, 11, 13, 15))
        """
        sides = size if isinstance(size, list | tuple) else (size, size)
        if len(sides) != 2:
            raise InputError(
                f"must be height and width, got {size!r}", parameter="size", remedy="give 28, or (28, 28)"
            )
        for side in sides:
            check_least(size=(side, 1))
        new = int(sides[0]), int(sides[1])
        if self.provenance is None or self.provenance.image_size is None:
            raise InputError(
                "the size of the images that it was calibrated on is unknown",
                where=f"locality schedule {self.name!r}",
                remedy=["leave out ", Option("resize_locality", python="resized")],
            )
        old = self.provenance.image_size
        if new == old:
            return self
        ratio = math.sqrt(math.prod(new) / math.prod(old))
        # The odd number nearest to v is 2 ceil((v - 2) / 2) + 1, and the smaller one in a tie.
        moved = [max(1, 2 * math.ceil(k * ratio / 2 - 1) + 1) for k in self.scales]
        note = f"scaled from {_by(old)} to {_by(new)} images"
        method = ", ".join(part for part in (self.provenance.method, note) if part)
        provenance = replace(self.provenance, image_size=new, method=method)
        return self._with_scales(f"resized-{_by(new, '-')}", moved, provenance)

    def _with_scales(
        self, change: str, scales: Sequence[int], provenance: Provenance | None = None
    ) -> LocalitySchedule:
        pairs = tuple((beta, k) for (beta, _), k in zip(self.pairs, scales, strict=True))
        return LocalitySchedule(f"{self.name}/{change}", pairs, provenance or self.provenance)

    def check_image_size(self, size: tuple[int, int]) -> None:
        """Warn when the scales were calibrated on images of another size than (height, width)."""
        known = self.provenance and self.provenance.image_size
        if known and known != size:
            warning = PatchIndexWarning(
                f"was calibrated on images of {_by(known)}, not {_by(size)}",
                where=f"locality schedule {self.name!r}",
                remedy=["scale it with ", Option("resize_locality", python="LocalitySchedule.resized")],
            )
            warn(warning)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the schedule to a JSON file, which `load` and `--locality` read.

        Raises
        ------
        OutputExistsError, SourceNotFoundError
            When the file exists and `overwrite` is False, or its folder does not exist.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise SourceNotFoundError(
                "no such folder", where=path.parent, remedy="make it, or use another path"
            )
        if path_exists(path) and not overwrite:
            raise OutputExistsError(
                "exists", where=path, remedy=["use another name, or ", Option("overwrite", True)]
            )
        scratch = path.with_name(path.name + ".writing")
        scratch.write_text(json.dumps({"version": FILE_VERSION, **self.as_dict()}, indent=2) + "\n")
        scratch.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LocalitySchedule:
        """Read the JSON file of `save`.

        Raises
        ------
        SourceNotFoundError, InputError
            When there is no such file, it cannot be accessed, or its content has a wrong form.
        """
        path = Path(path)
        with accessing(path):
            is_file = path.is_file()
        if not is_file:
            raise SourceNotFoundError("no such file", where=path, remedy="check the path of the schedule")
        try:
            with accessing(path):
                content = read_regular(path, MOST_BYTES, follow_links=True)
        except IrregularFileError as error:
            raise _not_a_schedule(error.what, path) from None
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _not_a_schedule(f"is not JSON ({error})", path) from None
        if not isinstance(found, dict) or found.get("version") != FILE_VERSION:
            version = found.get("version") if isinstance(found, dict) else None
            raise _not_a_schedule(f"has version {version!r}; this release reads {FILE_VERSION}", path)
        del found["version"]
        return cls.from_dict({"pairs": None, **found}, path)  # scales by time are only in stores

    def as_dict(self) -> dict[str, Any]:
        """Return the schedule as plain data, as stores and files keep it."""
        plain: dict[str, Any] = {
            "name": self.name,
            "pairs": [list(pair) for pair in self.pairs],
            "provenance": None if self.provenance is None else self.provenance.as_dict(),
        }
        if self.quartiles is not None:
            plain["quartiles"] = [list(pair) for pair in self.quartiles]
        return plain

    @classmethod
    def from_dict(cls, found: dict[str, Any], where: object = "locality schedule") -> LocalitySchedule:
        """Return the schedule of `as_dict`, or of a store of an earlier release: scales by cosine time."""
        by_time = set(found) == {"name", "scales"}
        if not by_time and (unknown := set(found) - {"name", "pairs", "provenance", "quartiles"}):
            raise _not_a_schedule(f"has an unknown field {min(unknown)!r}", where)
        name, pairs, quartiles = found.get("name"), found.get("pairs"), found.get("quartiles")
        if not isinstance(name, str) or not name:
            raise _not_a_schedule("has no name", where)
        given = found.get("provenance")
        try:
            if by_time:
                return cls._by_time(name, found["scales"])
            provenance = None if given is None else Provenance(**given)
            return cls(name, pairs, provenance, quartiles)  # type: ignore[arg-type]
        except TypeError:
            fields = ", ".join(Provenance.__dataclass_fields__)
            raise _not_a_schedule(f"provenance must have the fields {fields}", where) from None
        except InputError as error:
            raise _not_a_schedule(error.what, where) from None

    @classmethod
    def _by_time(cls, name: str, scales: Any) -> LocalitySchedule:
        """Return the schedule of scales by cosine time, which has the name of a preset where it is one."""
        if not isinstance(scales, list | tuple):
            raise InputError("scales must be a list of scales", parameter="locality")
        if LOCALITY_PRESETS.get(name) == tuple(scales):
            return cls.of(name)
        return replace(cls.of(scales), name=name)


LocalityLike = str | os.PathLike[str] | int | Sequence[int] | LocalitySchedule


def noise_levels(k: int, schedule: LocalitySchedule | None = None) -> list[float]:
    """Return the noise variances at which a schedule, or any preset of the paper, uses scale k, ascending.

    A scale that no schedule uses gets the variances of the paper's sampling grid.
    """
    schedules = [schedule] if schedule else [LocalitySchedule.of(name) for name in PUBLISHED]
    betas = {beta for each in schedules for beta in each.betas(k)}
    return sorted(betas or {cosine(i / STEPS) for i in range(1, STEPS)})


def _angle(beta: float) -> float:
    return math.asin(math.sqrt(beta))


def _by(size: tuple[int, int], between: str = " x ") -> str:
    return between.join(map(str, size))


def _not_a_schedule(what: str, where: object) -> InputError:
    return InputError(
        what, where=where, remedy="give a file that patchindex calibrate or LocalitySchedule.save wrote"
    )
