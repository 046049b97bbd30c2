"""Tables of comparisons with networks: a row per network and data set, a column per denoiser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from patchindex.errors import InputError, SourceNotFoundError
from patchindex.study.bootstrap import median_interval
from patchindex.study.files import write_csv

__all__ = ["RESULTS", "Run", "markdown", "read_run", "wide_rows", "write_tables"]

RESULTS = "results.json"


@dataclass(frozen=True)
class Run:
    """The part of a comparison that goes into a table: one network and its data set.

    Attributes
    ----------
    name : str
        Data set and network.
    network : dict
        `parameters`, `loss` and the like, as far as they are known.
    settings : dict
        Settings of the comparison.
    images : list of dict
        A row per network grid, denoiser and image, as `Theory.images`.
    """

    name: str
    network: dict[str, Any]
    settings: dict[str, Any]
    images: list[dict[str, Any]] = field(repr=False)

    @property
    def denoisers(self) -> list[str]:
        """Names of the denoisers, in order."""
        return list(dict.fromkeys(row["denoiser"] for row in self.images))

    @property
    def grids(self) -> list[int]:
        """Grid points of the network's images, those of the main table first."""
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
    return dict(zip(keys, (None,) * 3 if values is None else median_interval(values, seed=seed), strict=True))


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
    if not path.is_file():
        raise SourceNotFoundError(
            f"has no {RESULTS}", where=folder, remedy="give folders of finished comparisons"
        )
    try:
        found = json.loads(path.read_text())
        return Run(found["name"], found["network"], found["settings"], found["images"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot be read ({error})", where=path, remedy="compare again") from None


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
        summary = run.summary()
        for steps in run.grids:
            row: dict[str, Any] = {
                "network": run.name,
                "network_steps": steps,
                "steps": run.settings["steps"],
            }
            row |= {"images": run.settings["n"]}
            row |= {name: run.network.get(name) for name in ("parameters", "loss", "minutes")}
            for name in names:
                found = next((r for r in summary if (r["denoiser"], r["network_steps"]) == (name, steps)), {})
                row |= {f"{name}{suffix}": found.get(key) for suffix, key in columns.items()}
            rows.append(row)
    return rows


def markdown(runs: Sequence[Run]) -> str:
    """Return the tables of some runs as Markdown, in the layout of Table 1 of the paper."""
    first = runs[0]
    names = _denoisers(runs)
    steps = first.settings["steps"]
    lines = ["# Theory against networks", ""]
    text = (
        "{} of final images against the network's [bootstrap 95 % interval of the median]; denoisers by DDIM"
    )
    for number in range(max(len(run.grids) for run in runs)):
        grid = ", ".join(dict.fromkeys(str(run.grids[min(number, len(run.grids) - 1)]) for run in runs))
        lines += [f"## Network in {grid} steps", ""]
        for measure, title in (("pearson_r", "Median Pearson's r"), ("r2", "Median R2")):
            lines += [f"{text.format(title)} in {steps} steps.", ""]
            rows = [_cells(run, run.grids[min(number, len(run.grids) - 1)], names, measure) for run in runs]
            lines += [*_table(["network", "parameters", "loss", "images", *names], rows), ""]
    lines += [
        f"## {first.denoisers[0]} against the others", "",
        "Share of images where the first denoiser has the larger r, and median of its r minus the other's r,",
        "by image [bootstrap 95 % interval].", "",
    ]  # fmt: skip
    heading = ["network", "network steps", *[name for name in names if name != first.denoisers[0]]]
    rows = []
    for run in runs:
        summary = run.summary()
        for grid_steps in run.grids:
            found = {row["denoiser"]: row for row in summary if row["network_steps"] == grid_steps}
            rows.append([run.name, str(grid_steps), *[_against(found.get(name)) for name in heading[2:]]])
    lines += [*_table(heading, rows), "", "## Seconds per image", ""]
    rows = []
    for run in runs:
        found = {row["denoiser"]: row for row in run.summary()}
        rows.append([run.name, *[f"{found[n]['seconds']:.2f}" if n in found else "" for n in names]])
    return "\n".join([*lines, *_table(["network", *names], rows), ""])


def _denoisers(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.denoisers))


def _cells(run: Run, steps: int, names: Sequence[str], measure: str) -> list[str]:
    """Return the cells of a run in the main table."""
    found = {row["denoiser"]: row for row in run.summary() if row["network_steps"] == steps}
    parameters, loss = run.network.get("parameters"), run.network.get("loss")
    cells = [run.name, "" if parameters is None else f"{parameters:,}", "" if loss is None else f"{loss:.4f}"]
    cells.append(str(run.settings["n"]))
    for name in names:
        row = found.get(name)
        cells.append("" if row is None else _with_interval(row, measure))
    return cells


def _with_interval(row: Mapping[str, Any], measure: str, form: str = ".3f") -> str:
    value, low, high = (row[f"{measure}{end}"] for end in ("", "_low", "_high"))
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _against(row: Mapping[str, Any] | None) -> str:
    if row is None or row["share"] is None:
        return ""
    return f"{100 * row['share']:.0f} %, {_with_interval(row, 'difference', '+.3f')}"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heading, ["---"] * len(heading), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
