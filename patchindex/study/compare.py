"""Exact against approximate: estimators along the exact trajectory, and along their own."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patchindex.denoisers.score_machine import ScoreMachine
from patchindex.errors import InputError
from patchindex.exact import load_kernel
from patchindex.runtime import Progress, no_progress, part_of
from patchindex.sampling.samplers import sample, starting_noise
from patchindex.study.accuracy import accuracy
from patchindex.study.metrics import pearson_r, r2, rmse

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLUMNS", "Study", "compare"]

Callback = Callable[[dict[str, Any]], None]

REFERENCE = "exact"
SPENT = ("patches_evaluated", "codes_scanned", "exact_pixels")
COLUMNS = (
    "estimator",
    "trajectory",
    "image",
    "step",
    "t",
    "k",
    "rmse",
    "max_error",
    "bias",
    "stderr",
    "coverage",
    "pearson_r",
    "r2",
    "captured_mass",
    "ess",
    "patches_evaluated",
    "codes_scanned",
    "exact_pixels",
    "seconds",
)


@dataclass(frozen=True)
class Study:
    """What `compare` found.

    Attributes
    ----------
    rows : list of dict
        A tidy table with the columns `COLUMNS`, a row for each estimator, trajectory, image and step.

        On the trajectory `"exact"` all estimators see the noisy images of the exact one, at time `t` before
        the step: `rmse`, `max_error` (the largest of all repeats) and `coverage` are of the posterior mean,
        `rmse` and `stderr` root mean squares over repeats, and `bias` is the root mean square over pixels
        and channels of the mean error of all repeats (None for a single one). It holds what is left of the
        noise, `rmse / sqrt(repeats)`, besides the bias.

        On the trajectory `"own"` an estimator follows its own scores: `rmse`, `max_error`, `pearson_r` and
        `r2` compare the image after the step with that of the exact trajectory.

        What was spent, `patches_evaluated`, `codes_scanned`, `exact_pixels` and `seconds`, is an average of
        the images of a batch, and over repeats. On the exact trajectory scales are open already when the
        time is taken; on own ones they may have to be opened again.
    images : dict of str to Tensor
        The last image of each own trajectory by estimator, `"exact"` among them, (n, C, H, W).
    settings : dict
    """

    rows: list[dict[str, Any]] = field(repr=False)
    images: dict[str, Tensor] = field(repr=False)
    settings: dict[str, Any]

    def summary(self) -> list[dict[str, Any]]:
        """Return one row for each estimator.

        `rmse` of the worst step along the exact trajectory, over all images; the largest error; the least
        `coverage` of a step; the least and largest `rmse / stderr` of a step; the least `pearson_r` and `r2`
        of an own image; and the seconds that an own image took. None where there is nothing to tell.
        """
        found = []
        for name in self.images:
            mine = [row for row in self.rows if row["estimator"] == name]
            last = [row for row in mine if row["trajectory"] == "own" and row["step"] == 1]
            seconds = sum(row["seconds"] for row in mine if row["trajectory"] == "own") / len(last)
            steps = [
                [row for row in mine if row["trajectory"] == "exact" and row["step"] == i]
                for i in range(self.settings["steps"] - 1, 0, -1)
            ]
            each = [
                {c: _rms(r[c] for r in rows) for c in ("rmse", "stderr")} for rows in steps if _known(rows)
            ]
            ratios = [step["rmse"] / step["stderr"] for step in each if step["stderr"] > 0]
            coverage = [sum(r["coverage"] for r in rows) / len(rows) for rows in steps if _known(rows)]
            found.append(
                {
                    "estimator": name,
                    "rmse": max((_rms(r["rmse"] for r in rows) for rows in steps if rows), default=None),
                    "max_error": max((r["max_error"] for rows in steps for r in rows), default=None),
                    "coverage": min(coverage, default=None),
                    "least_ratio": min(ratios, default=None),
                    "largest_ratio": max(ratios, default=None),
                    **{
                        c: min((r[c] for r in last if r[c] is not None), default=None)
                        for c in ("pearson_r", "r2")
                    },
                    "seconds": seconds,
                }
            )
        return found

    def to_csv(self, path: str | Path) -> None:
        """Write the table; what is None is left empty."""
        with Path(path).open("w", newline="") as out:
            writer = csv.DictWriter(out, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def to_json(self, path: str | Path) -> None:
        """Write settings, summary and table."""
        whole = {"settings": self.settings, "summary": self.summary(), "rows": self.rows}
        Path(path).write_text(json.dumps(whole, indent=2, default=str) + "\n")

    def plot(self) -> Figure:
        """Draw error, honesty of the standard error, captured mass and time against t.

        Raises
        ------
        InputError
            When matplotlib is not installed.
        """
        from patchindex.study.plots import plot  # matplotlib is an extra

        return plot(self.rows, self.images)


def compare(
    machines: Mapping[str, ScoreMachine] | Sequence[ScoreMachine],
    n: int | None = None,
    steps: int = 20,
    *,
    x_T: Tensor | np.ndarray | None = None,
    repeats: int = 1,
    seed: int = 0,
    label: int | None = None,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> Study:
    """Run estimators along the exact trajectory, and along their own from the same noise.

    Parameters
    ----------
    machines : mapping of str to ScoreMachine, or sequence of ScoreMachine
        All of the same images, machine and schedules; by name. In a sequence their names are their
        estimators'. The exact machine that they are compared with follows from the first.
    n : int, optional
        How many images; by default as many as in `x_T`, or 1.
    steps : int
        Of the time grid; one less is taken.
    x_T : Tensor or array, shape (n, C, H, W), optional
        Noise to start from, in place of the seed's.
    repeats : int
        How often an estimate along the exact trajectory is drawn, with seeds seed, seed + 1, ...
    seed, label, batch_size
        As for `sample`.
    progress : Progress, optional
        Called as `progress(stage, done, total)`.

    Returns
    -------
    Study

    Raises
    ------
    InputError
        When there are no machines, two have the same name, or they do not belong together.

    Examples
    --------
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 12, 12), np.uint8)
    >>> m = ScoreMachine(images, locality=[3, 3, 5], dtype=torch.float64)
    >>> study = compare({"float64": m}, n=1, steps=3)
    >>> [(row["estimator"], row["trajectory"], row["step"], row["rmse"]) for row in study.rows[:2]]
    [('float64', 'exact', 2, 0.0), ('float64', 'exact', 1, 0.0)]
    """
    progress = progress or no_progress
    named = _named(machines)
    if repeats < 1:
        raise InputError(f"must be at least 1, got {repeats}", where="repeats", remedy="use a larger number")
    reference = next(iter(named.values())).exact()
    noise = starting_noise(reference, n, seed, x_T)
    label = reference.label if label is None else label
    settings: dict[str, Any] = {"steps": steps, "seed": seed, "label": label, "batch_size": batch_size}
    if reference.device.type == "cpu":
        load_kernel()  # its compilation is nobody's time
    rows: list[dict[str, Any]] = []
    warm: set[tuple[str, int | None]] = set()
    exact: dict[tuple[int, int], Tensor] = {}  # the noisy image after a step, by step and first of its batch

    def along(step: dict[str, Any]) -> None:
        i, first = step["i"], step["first"]
        x = exact.get((i + 1, first), noise[first : first + batch_size]).to(reference.device, torch.float32)
        exact[i, first] = step["x"].cpu()
        for name, machine in named.items():
            if (name, k := machine.scale_at(step["t"])) not in warm:  # opens the scale, loads kernels
                machine.posterior_mean(x[:1], step["t"], label=label, seed=seed + repeats)
                warm.add((name, k))
            rows.extend(_along(name, machine, x, step, repeats, seed, label))

    def follow(name: str, machine: ScoreMachine, callback: Callback, done: float, share: float) -> Tensor:
        after: dict[tuple[int, int], Tensor] = {}

        def keep(step: dict[str, Any]) -> None:
            callback(step)
            after[step["i"], step["first"]] = step["x"].cpu()

        mine = part_of(progress, "comparing", done, done + share)
        drawn = sample(machine, n, x_T=noise, callback=keep, progress=mine, **settings)
        # Records and callbacks come in the same order.
        for record, (at, x) in zip(drawn.steps, after.items(), strict=True):
            rows.extend(_own(name, record, at, x, exact[at]))
        return drawn.images.cpu()

    part = 1 / (1 + len(named))
    images = {REFERENCE: follow(REFERENCE, reference, along, 0.0, part)}
    for j, (name, machine) in enumerate(named.items(), 1):
        images[name] = follow(name, machine, lambda _: None, j * part, part)
    chosen = {name: machine.settings for name, machine in named.items()}
    return Study(rows, images, {**settings, "n": len(noise), "repeats": repeats, "machines": chosen})


def _named(machines: Mapping[str, ScoreMachine] | Sequence[ScoreMachine]) -> dict[str, ScoreMachine]:
    """Return machines by name, checked to be of the same images and schedules."""
    if isinstance(machines, ScoreMachine):
        machines = [machines]
    if isinstance(machines, Mapping):
        pairs = list(machines.items())
    else:
        wrong = [type(each).__name__ for each in machines if not isinstance(each, ScoreMachine)]
        if wrong:
            raise InputError(
                f"a {wrong[0]} is none", where="machines", remedy="give instances of ScoreMachine"
            )
        pairs = [(machine.estimator, machine) for machine in machines]
    if not pairs:
        raise InputError("there are none", where="machines", remedy="give at least one")
    names = [name for name, _ in pairs]
    for name, machine in pairs:
        if name == REFERENCE or names.count(name) > 1:
            raise InputError(
                f"{name!r} is what all are compared with"
                if name == REFERENCE
                else f"two are called {name!r}",
                where="machines",
                remedy="leave it out: it is compared with anyway"
                if name == REFERENCE
                else "give a mapping from names to machines",
            )
        if not _alike(machine, pairs[0][1]):
            raise InputError(
                f"{name!r} has other images or schedules than {names[0]!r}",
                where="machines",
                remedy="compare estimators of one machine",
            )
    return dict(pairs)


def _alike(one: ScoreMachine, two: ScoreMachine) -> bool:
    """Whether two are the same machine of the same images, as far as three of them tell, and schedules."""
    times = (0.1, 0.5, 0.9)
    first, second = (
        (
            m.machine, m.train_windows, m.locality, m.label, m.shape, len(m.training), str(m.device),
            [m.noise(t) for t in times],
            [m.training.read(i, i + 1).tobytes() for i in (0, len(m.training) // 2, len(m.training) - 1)],
        )
        for m in (one, two)
    )  # fmt: skip
    return first == second


def _along(
    name: str,
    machine: ScoreMachine,
    x: Tensor,
    step: dict[str, Any],
    repeats: int,
    seed: int,
    label: int | None,
) -> Iterator[dict[str, Any]]:
    """Yield a row an image: repeated estimates at a step of the exact trajectory."""
    exact, t, first = step["estimate"].mean, step["t"], step["first"]
    found: list[dict[str, list[Any]]] = []
    spent: list[dict[str, float]] = []
    total = torch.zeros_like(exact, dtype=torch.float64)
    for r in range(repeats):
        start = time.perf_counter()
        e = machine.posterior_mean(x, t, label=label, seed=seed + r, image_ids=range(first, first + len(x)))
        spent.append({"seconds": time.perf_counter() - start} | {each: getattr(e, each) for each in SPENT})
        found.append(accuracy(e, exact))
        total += e.mean
    bias = rmse(total / repeats, exact).tolist()
    costs = {each: sum(s[each] for s in spent) / repeats / len(x) for each in spent[0]}
    for b in range(len(x)):
        mine = {each: [f[each][b] for f in found] for each in found[0]}
        known = None not in mine["stderr"]
        yield _row(
            name, "exact", first + b, step["i"], t, machine.scale_at(t),
            **costs,
            rmse=_rms(mine["rmse"]),
            max_error=max(mine["max_error"]),
            bias=bias[b] if repeats > 1 else None,
            stderr=_rms(mine["stderr"]) if known else None,
            coverage=sum(mine["coverage"]) / repeats if known else None,
            captured_mass=sum(mine["captured_mass"]) / repeats,
            ess=sum(mine["ess"]) / repeats,
        )  # fmt: skip


def _own(
    name: str, record: dict[str, Any], at: tuple[int, int], x: Tensor, exact: Tensor
) -> Iterator[dict[str, Any]]:
    """Yield a row an image: how far an own trajectory has come from the exact one."""
    (i, first), off = at, (x.double() - exact.double()).abs().flatten(1)
    measures = {"rmse": rmse(x, exact), "pearson_r": pearson_r(x, exact), "r2": r2(x, exact)}
    costs = {each: record[each] / len(x) for each in ("seconds", *SPENT)}
    for b in range(len(x)):
        yield _row(
            name, "own", first + b, i, record["t"], record["k"],
            **costs,
            **{each: _finite(float(values[b])) for each, values in measures.items()},
            max_error=float(off[b].max()),
        )  # fmt: skip


def _row(
    estimator: str, trajectory: str, image: int, step: int, t: float, k: int | None, **values: float | None
) -> dict[str, Any]:
    place = {"estimator": estimator, "trajectory": trajectory, "image": image, "step": step, "t": t, "k": k}
    return {**dict.fromkeys(COLUMNS), **place, **values}


def _finite(value: float) -> float | None:
    """Return a number, or None: images of one colour have no correlation."""
    return value if math.isfinite(value) else None


def _rms(values: Iterable[float]) -> float:
    squares = [value * value for value in values]
    return math.sqrt(sum(squares) / len(squares))


def _known(rows: list[dict[str, Any]]) -> bool:
    """Whether there are standard errors."""
    return bool(rows) and all(row["stderr"] is not None for row in rows)
