"""Tables of comparisons with networks: a row per network and data set, a column per denoiser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from patchindex.checks import accessing, is_real, is_whole
from patchindex.errors import InputError, SourceNotFoundError
from patchindex.regular_files import IrregularFileError, read_regular
from patchindex.store.text_files import write_csv
from patchindex.study.bootstrap import median_interval

__all__ = ["RESULTS", "Run", "markdown", "read_run", "wide_rows", "write_tables"]

RESULTS = "results.json"
MOST_BYTES = 1 << 30  # of a file of results: 10^5 images, ten denoisers and two grids take half of it
FACTS = ("network", "parameters", "loss", "minutes", "images")  # the first columns of a main table


@dataclass(frozen=True)
class Run:
    """The part of a comparison that goes into a table: one network and its data set.

    Attributes
    ----------
    name : str
        Data set and network.
    network : dict
        `parameters`, `loss` and other known figures.
    settings : dict
        Settings of the comparison.
    images : list of dict
        A row per network grid, denoiser and image, as `Theory.images`.
    points : list of dict
        Medians of the measures of posterior means, as `Theory.curves`.
    """

    name: str
    network: dict[str, Any]
    settings: dict[str, Any]
    images: list[dict[str, Any]] = field(repr=False)
    points: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def denoisers(self) -> list[str]:
        """Names of the denoisers, in order."""
        return list(dict.fromkeys(row["denoiser"] for row in self.images))

    @property
    def grids(self) -> list[int]:
        """Numbers of network steps, the steps of the main table first."""
        return list(dict.fromkeys(row["network_steps"] for row in self.images))

    def column(self, denoiser: str, steps: int, measure: str) -> np.ndarray:
        """Return a measure by image."""
        found = [r for r in self.images if (r["denoiser"], r["network_steps"]) == (denoiser, steps)]
        return np.array([row[measure] for row in sorted(found, key=lambda row: row["image"])], float)

    def summary(self) -> list[dict[str, Any]]:
        """Return a row per network grid and denoiser.

        `pearson_r` and `r2` are medians over images; `_low` and `_high` are the ends of their bootstrap 95 %
        intervals. `share` is the share of images where the first denoiser has the larger r, and `difference`
        the median of its r minus this denoiser's r, by image; None for the first denoiser.
        """
        return self._summary

    def row(self, denoiser: str, steps: int) -> dict[str, Any]:
        """Return a row of the summary; empty if the run does not have the denoiser."""
        place = denoiser, steps
        return next((row for row in self._summary if (row["denoiser"], row["network_steps"]) == place), {})

    @cached_property
    def _summary(self) -> list[dict[str, Any]]:
        rows, seed = [], self.settings["seed"]
        for steps in self.grids:
            first = self.column(self.denoisers[0], steps, "pearson_r")
            for name in self.denoisers:
                row: dict[str, Any] = {"network_steps": steps, "denoiser": name, "images": len(first)}
                own = self.column(name, steps, "pearson_r")
                row |= _interval("pearson_r", own, seed)
                row |= _interval("r2", self.column(name, steps, "r2"), seed)
                other = name != self.denoisers[0]
                row["share"] = float((first > own).mean()) if other else None
                row |= _interval("difference", first - own if other else None, seed)
                row["seconds"] = float(self.column(name, steps, "seconds").mean())
                rows.append(row)
        return rows


def _interval(name: str, values: np.ndarray | None, seed: int) -> dict[str, float | None]:
    keys = (name, f"{name}_low", f"{name}_high")
    # NaN: the image of the network has one colour, and the measure does not apply.
    known = np.empty(0) if values is None else values[np.isfinite(values)]
    return dict(zip(keys, median_interval(known, seed=seed) if known.size else (None,) * 3, strict=True))


def write_tables(folder: Path, runs: Sequence[Run]) -> None:
    """Write `table.md` and `table.csv` of some runs."""
    (folder / "table.md").write_text(markdown(runs))
    write_csv(folder / "table.csv", wide_rows(runs))


def read_run(folder: str | Path) -> Run:
    """Return the run of a folder that `patchindex compare` wrote.

    Raises
    ------
    SourceNotFoundError, InputError
        When there is no such comparison, or it is damaged.
    """
    path = Path(folder) / RESULTS
    with accessing(path):
        is_file = path.is_file()
    if not is_file:
        raise SourceNotFoundError(
            f"has no {RESULTS}", where=folder, remedy="give folders of finished comparisons"
        )
    try:
        with accessing(path):
            content = read_regular(path, MOST_BYTES, follow_links=True)
    except IrregularFileError as error:
        raise InputError(error.what, where=path, remedy="give folders of finished comparisons") from None
    try:
        found = json.loads(content)
        run = Run(found["name"], found["network"], found["settings"], found["images"], found["points"])
        problem = _problem_of(run)
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problem = str(error)
    if problem is not None:
        raise InputError(f"cannot be read ({problem})", where=path, remedy="compare again")
    return run


def _problem_of(run: Run) -> str | None:
    """Return the first problem of a run that was read from a file, or None."""
    if not isinstance(run.name, str):
        return "name is no text"
    for name in ("parameters", "loss", "minutes"):
        if isinstance(run.network.get(name), bool | str | list | dict):
            return f"{name} is no number"
    if any(not is_whole(run.settings[name]) or run.settings[name] < 0 for name in ("seed", "steps", "n")):
        return "seed, steps and n are no whole numbers"
    places = {(row["network_steps"], row["denoiser"], row["image"]) for row in run.images}
    pictures = {row["image"] for row in run.images}
    whole = len(run.grids) * len(run.denoisers) * len(pictures)
    if not whole or whole != len(places) or whole != len(run.images):
        return "images has not one row for each number of network steps, denoiser and image"
    if not all(isinstance(name, str) for name in run.denoisers):
        return "a denoiser has no name"
    for row in run.points:
        t, r = row["t"], row["pearson_r"]
        if not (is_real(t) and (r is None or is_real(r)) and isinstance(row["denoiser"], str)):
            return "points has a row without a denoiser, t or r"
    run.summary()
    return None


def wide_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row per run and number of network steps, with columns for each denoiser.

    `NAME` is the median r of a denoiser and `NAME low`, `NAME high` its interval; `NAME R2` is the median R2;
    `NAME share` and `NAME difference` (with `low` and `high`) compare the first denoiser with this one.
    """
    names = _denoisers(runs)
    columns = {
        "": "pearson_r", " low": "pearson_r_low", " high": "pearson_r_high",
        " R2": "r2", " R2 low": "r2_low", " R2 high": "r2_high",
        " share": "share",
        " difference": "difference",
        " difference low": "difference_low", " difference high": "difference_high",
        " seconds": "seconds",
    }  # fmt: skip
    rows = []
    for run in runs:
        for grid in run.grids:
            row = {"network": run.name, "network_steps": grid, "steps": run.settings["steps"]}
            row |= {"images": run.settings["n"]}
            row |= {name: run.network.get(name) for name in ("parameters", "loss", "minutes")}
            for name in names:
                found = run.row(name, grid)
                row |= {f"{name}{suffix}": found.get(key) for suffix, key in columns.items()}
            rows.append(row)
    return rows


def markdown(runs: Sequence[Run]) -> str:
    """Return the tables of some runs as Markdown, in the layout of Table 1 of the paper."""
    names, steps = _denoisers(runs), runs[0].settings["steps"]
    lines = ["# Denoisers against networks", ""]
    for position in range(max(len(run.grids) for run in runs)):
        shown = [run for run in runs if position < len(run.grids)]
        grids = ", ".join(dict.fromkeys(str(run.grids[position]) for run in shown))
        for measure, title in (("pearson_r", "Pearson's r"), ("r2", "R2")):
            lines += [
                f"## {title}, networks in {grids} steps", "",
                f"Median over final images with its bootstrap 95 % interval; denoisers in {steps} steps.", "",
                *_table([*FACTS, *names], [_cells(run, position, names, measure) for run in shown]), "",
            ]  # fmt: skip
    lines += [
        "## The first denoiser against the others", "",
        "Share of images where the first denoiser has the larger r, and the median over images of its r",
        "minus the other's r, with its bootstrap 95 % interval.", "",
        *_table(
            ["network", "network steps", "first", *names],
            [
                [
                    *(run.name, str(grid), run.denoisers[0]),
                    *[_against(run.row(name, grid)) for name in names],
                ]
                for run in runs
                for grid in run.grids
            ],
        ), "",
        "## Seconds per image", "",
        *_table(
            ["network", *names],
            [
                [run.name, *[_text(run.row(name, run.grids[0]), "seconds") for name in names]]
                for run in runs
            ],
        ), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _denoisers(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.denoisers))


def _cells(run: Run, position: int, names: Sequence[str], measure: str) -> list[str]:
    """Return the cells of a run in a main table."""
    parameters = run.network.get("parameters")
    facts = ["" if parameters is None else f"{parameters:,}"]
    facts += [_text(run.network, "loss", ".4f"), _text(run.network, "minutes", ".0f")]
    rows = [run.row(name, run.grids[position]) for name in names]
    return [run.name, *facts, str(run.settings["n"]), *[_with_interval(row, measure) for row in rows]]


def _text(row: Mapping[str, Any], key: str, form: str = ".2f") -> str:
    return "" if row.get(key) is None else format(row[key], form)


def _with_interval(row: Mapping[str, Any], measure: str, form: str = ".3f") -> str:
    value, low, high = (_text(row, f"{measure}{end}", form) for end in ("", "_low", "_high"))
    return value and f"{value} [{low}, {high}]"


def _against(row: Mapping[str, Any]) -> str:
    if row.get("share") is None:
        return ""
    return f"{100 * row['share']:.0f} %, {_with_interval(row, 'difference', '+.3f')}"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heading, ["---"] * len(heading), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
