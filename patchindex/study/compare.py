"""`compare`: estimators against exact scores, along the exact trajectory and along their own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchindex.checks import check_least
from patchindex.denoisers.machine import ScoreMachine
from patchindex.devices import to_float64
from patchindex.errors import InputError
from patchindex.estimators.base import COSTS
from patchindex.exact import load_kernel
from patchindex.runtime import Progress, as_progress, part_of, plain_state
from patchindex.sampling import sample, starting_noise
from patchindex.study.metrics import accuracy, has_one_colour, pearson_r, r2, rmse, root_mean_square
from patchindex.study.table import COLUMNS, PLACE, Study

__all__ = ["Study", "compare"]

REFERENCE = "exact"


@plain_state()
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
        Machines by name, which differ only in their estimators. In a sequence a machine's name is the name of
        its estimator. The reference is the machine called `"exact"`; without one, exact scores of the first
        machine are added as the reference. The reference alone has no errors, but times and images.
    n : int, optional
        Number of images; by default as many as in `x_T`, or 1.
    steps : int
        Points of the time grid; `steps - 1` steps are taken.
    x_T : Tensor or array, shape (n, C, H, W), optional
        Noise to start from, instead of noise drawn with the seed.
    repeats : int
        Number of estimates at each step of the exact trajectory, with seeds seed, seed + 1, ...
    seed, label, batch_size, progress
        As for `sample`.

    Returns
    -------
    Study
        A row per estimator, trajectory, image and step, and the images that each estimator draws.

    Raises
    ------
    InputError
        When there are no machines, two have the same name, their images or schedules differ, or a machine
        called `"exact"` has another estimator.

    Examples
    --------
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 12, 12), np.uint8)
    >>> m = ScoreMachine(images, locality=[3, 3, 5], dtype=torch.float64)
    >>> study = compare({"float64": m}, n=1, steps=3)
    >>> [(row["estimator"], row["trajectory"], row["step"], row["rmse"]) for row in study.rows[:2]]
    [('float64', 'exact', 2, 0.0), ('float64', 'exact', 1, 0.0)]
    """
    progress = as_progress(progress)
    named = _named(machines)
    check_least(repeats=(repeats, 1), steps=(steps, 2), batch_size=(batch_size, 1))
    reference = named.pop(REFERENCE, None) or next(iter(named.values())).exact()
    noise = starting_noise(reference, n, seed, x_T)
    label = reference.label if label is None else label
    settings: dict[str, Any] = {"steps": steps, "seed": seed, "label": label, "batch_size": batch_size}
    if reference.device.type == "cpu":
        load_kernel()  # so that no estimator's time includes the compilation
    rows: list[dict[str, Any]] = []
    warm: set[tuple[str, int | None]] = set()
    exact: dict[tuple[int, int], Tensor] = {}  # the noisy images after a step, by step and first image

    def along(step: dict[str, Any]) -> None:
        i, first = step["i"], step["first"]
        x = exact.get((i + 1, first), noise[first : first + batch_size]).to(reference.device, torch.float32)
        exact[i, first] = step["x"].cpu()
        for name, machine in named.items():
            if (name, k := machine.scale_at(step["t"])) not in warm:  # opens the scale, loads kernels
                machine.posterior_mean(x[:1], step["t"], label=label, seed=seed + repeats)
                warm.add((name, k))
            rows.extend(_along(name, machine, x, step, range(seed, seed + repeats), label))

    def follow(name: str, machine: ScoreMachine, number: int) -> Tensor:
        after: dict[tuple[int, int], Tensor] = {}

        def keep(step: dict[str, Any]) -> None:
            if machine is reference:
                along(step)
            after[step["i"], step["first"]] = step["x"].cpu()

        part = part_of(progress, "comparing", number / (1 + len(named)), (number + 1) / (1 + len(named)))
        drawn = sample(machine, n, x_T=noise, callback=keep, progress=part, **settings)
        # Records and callbacks come in the same order.
        for record, (at, x) in zip(drawn.steps, after.items(), strict=True):
            rows.extend(_own(name, record, at, x, exact[at]))
        return drawn.images.cpu()

    every = {REFERENCE: reference, **named}
    images = {name: follow(name, machine, number) for number, (name, machine) in enumerate(every.items())}
    chosen = {name: machine.settings for name, machine in every.items()}
    return Study(rows, images, {**settings, "n": len(noise), "repeats": repeats, "machines": chosen})


def _named(machines: Mapping[str, ScoreMachine] | Sequence[ScoreMachine]) -> dict[str, ScoreMachine]:
    """Return the machines by name, with the same images and schedules."""

    def refuse(what: str, remedy: str) -> InputError:
        return InputError(what, parameter="machines", remedy=remedy)

    if isinstance(machines, ScoreMachine):
        machines = [machines]
    if isinstance(machines, Mapping):
        pairs = list(machines.items())
    else:
        pairs = [(getattr(machine, "estimator", ""), machine) for machine in machines]
    for _, machine in pairs:
        if not isinstance(machine, ScoreMachine):
            raise refuse(f"{type(machine).__name__} is not a ScoreMachine", "give instances of ScoreMachine")
    if not pairs:
        raise refuse("there are no machines", "give at least one")
    names = [name for name, _ in pairs]
    for name, machine in pairs:
        if name == REFERENCE != machine.estimator:
            what = f"{name!r} is the name of the reference, and the machine has the estimator"
            raise refuse(f"{what} {machine.estimator!r}", "give the machine another name")
        if names.count(name) > 1:
            raise refuse(f"two machines are called {name!r}", "give a mapping from names to machines")
        if not _alike(machine, pairs[0][1]):
            what = f"{name!r} has other images or schedules than {names[0]!r}"
            raise refuse(what, "compare machines that differ only in their estimators")
    return dict(pairs)


def _alike(one: ScoreMachine, two: ScoreMachine) -> bool:
    """Return whether two machines have the same settings but the estimator, and the same images, by three."""
    first, second = (
        (
            m.machine, m.train_windows, m.locality, m.label, m.shape, len(m.training), str(m.device),
            [m.noise(t) for t in (0.1, 0.5, 0.9)],
            [m.training.read(i, i + 1).tobytes() for i in (0, len(m.training) // 2, len(m.training) - 1)],
        )
        for m in (one, two)
    )  # fmt: skip
    return first == second


def _along(
    name: str, machine: ScoreMachine, x: Tensor, step: dict[str, Any], seeds: range, label: int | None
) -> Iterator[dict[str, Any]]:
    """Yield a row per image: estimates with several seeds at a step of the exact trajectory."""
    exact, t, first = step["estimate"].mean, step["t"], step["first"]
    found: list[dict[str, list[Any]]] = []
    spent: list[dict[str, float]] = []
    total = torch.zeros_like(to_float64(exact))
    for seed in seeds:
        start = time.perf_counter()
        e = machine.posterior_mean(x, t, label=label, seed=seed, image_ids=range(first, first + len(x)))
        spent.append({"seconds": time.perf_counter() - start} | {cost: getattr(e, cost) for cost in COSTS})
        found.append(accuracy(e, exact))
        total += to_float64(e.mean)
    repeats = len(seeds)
    bias = rmse(total / repeats, exact).tolist()
    costs = {cost: sum(s[cost] for s in spent) / repeats / len(x) for cost in spent[0]}
    for b in range(len(x)):
        mine = {measure: [f[measure][b] for f in found] for measure in found[0]}
        known = None not in mine["stderr"]
        yield _row(
            name, "exact", first + b, step["i"], t, machine.scale_at(t),
            **costs,
            rmse=root_mean_square(mine["rmse"]),
            max_error=max(mine["max_error"]),
            bias=bias[b] if repeats > 1 else None,
            stderr=root_mean_square(mine["stderr"]) if known else None,
            coverage=sum(mine["coverage"]) / repeats if known else None,
            captured_mass=sum(mine["captured_mass"]) / repeats,
            ess=sum(mine["ess"]) / repeats,
        )  # fmt: skip


def _own(
    name: str, record: dict[str, Any], at: tuple[int, int], x: Tensor, exact: Tensor
) -> Iterator[dict[str, Any]]:
    """Yield a row per image: the image after a step of an own trajectory and of the exact one."""
    (i, first), off = at, (to_float64(x) - to_float64(exact)).abs().flatten(1)
    flat = has_one_colour(exact)
    measures = {
        "rmse": rmse(x, exact),
        "pearson_r": pearson_r(x, exact).masked_fill(flat | has_one_colour(x), torch.nan),
        "r2": r2(x, exact).masked_fill(flat, torch.nan),
    }
    costs = {cost: record[cost] / len(x) for cost in ("seconds", *COSTS)}
    for b in range(len(x)):
        yield _row(
            name, "own", first + b, i, record["t"], record["k"],
            **costs,
            # NaN: an image has one colour, and the measure does not apply.
            **{m: float(values[b]) if values[b].isfinite() else None for m, values in measures.items()},
            max_error=float(off[b].max()),
        )  # fmt: skip


def _row(*place: Any, **values: float | None) -> dict[str, Any]:
    return {**dict.fromkeys(COLUMNS), **dict(zip(PLACE, place, strict=True)), **values}
