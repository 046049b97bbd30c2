"""`patchindex info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from patchindex.estimators.curve import OperatingCurve
from patchindex.index import open_index
from patchindex.store.remote import is_url

from .options import StorePath, json_option, print_json, table_console
from .running import drifted
from .words import counted, size, some

__all__ = ["info"]

SHOWN = 12  # labels
TOLERANCE, CANDIDATES, QUALITY = 0.01, 256, 0.98  # the estimators' defaults


@click.command()
@click.argument("store", type=StorePath())
@json_option
def info(store: Path | str, as_json: bool) -> None:
    """Print what a store holds: settings, provenance, and the size of each scale.

    \b
    Example:
      patchindex info fashion.zarr --json
    """
    index = open_index(store)
    found = index.info()
    if as_json:
        print_json(found)
        return
    console = table_console()
    _, height, width, channels = found["shape"]
    labels, appended = found["labels"], found["settings"].get("appended", [])
    facts = {
        "machine": f"{found['machine']} ({found['train_windows']} training windows)"
        if found["machine"] == "ELS"
        else found["machine"],
        "images": f"{found['images']:,} of {height} x {width} x {channels}, from {found['source']}",
        "appended": some([f"{a['images']:,} from {a['source']}" for a in appended]),
        "left out": _left_out(found["skipped"]),
        "labels": _labels(labels, found["label_names"]),
        "locality": "none" if found["locality"] is None else "{name}: {scales}".format(**found["locality"]),
        "size": size(found["bytes"]),
        "built": f"{found['created']} by patchindex {found['versions']['patchindex']}",
        "fingerprint": found["fingerprint"],
    }
    for name, value in facts.items():
        if not value:
            continue  # nothing was appended or left out
        console.print(f"[bold]{name:<12}[/bold]{escape(str(value))}", highlight=False, soft_wrap=True)
    if not found["indexes"]:
        return
    table = Table(
        box=box.SIMPLE_HEAD, title="code: bytes of a patch's code; energy: what its dimensions keep"
    )
    for name in ("k", "patches", "lists", "classes", "code", "energy", "size", "B/patch", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for k, scale in found["indexes"].items():
        table.add_row(
            k,
            f"{scale['patches']:,}",
            f"{scale['lists']:,}",
            f"{scale['position_classes']:,}",
            str(scale["pca_dims"]),
            f"{scale['pca_energy']:.4f}",
            size(scale["bytes"]),
            f"{scale['bytes'] / scale['patches']:.1f}",
            f"{sum(scale['seconds'].values()):.1f}",
        )
    console.print(table)
    for k, scale in found["indexes"].items():
        for drift in scale.get("drift", []):
            click.echo(f"k = {k}: {counted(drift['images'], 'image')}: {drifted(drift)}")
    _print_curves(console, found["indexes"])
    if missing := [int(k) for k, scale in found["indexes"].items() if "operating_curve" not in scale]:
        where = "where it is on a disk" if is_url(store) else str(store)
        click.echo(
            f"no operating curve for k = {some(missing, len(missing))}, by which options are chosen: "
            f"patchindex tune {where} measures it"
        )


def _labels(labels: list[int] | None, names: list[str] | None) -> str:
    """Say which labels there are, and what they are called."""
    if labels is None:
        return "none"
    # The names of attributes have commas: "Smiling, not Male".
    named = labels if names is None else [f"{i} {names[i]}" for i in labels]
    return some(named, SHOWN, ", " if names is None else "; ")


def _left_out(skipped: list[str]) -> str:
    """Name files that were not decoded."""
    return f"{counted(len(skipped), 'file')} that cannot be decoded: {some(skipped)}" if skipped else ""


def _print_curves(console: Console, scales: dict[str, dict[str, Any]]) -> None:
    """Print what `auto` and `topk` choose by default at each scale, and what that is expected to take."""
    goals = f"auto in sampling to {TOLERANCE}, topk {CANDIDATES} to {QUALITY:.0%}"
    table = Table(box=box.SIMPLE_HEAD, title=f"operating curve: microseconds a pixel, {goals}")
    for name in ("k", "beta", "exact", "auto", "probes", "candidates", "topk", "probes", "mass"):
        table.add_column(name, justify="right", no_wrap=True)
    for k, scale in scales.items():
        if (curve := OperatingCurve.read(scale.get("operating_curve"), f"scale {k}")) is None:
            continue
        for beta in sorted({point.beta for point in curve.near}):
            near, expected = curve.near_field(beta, TOLERANCE, steps=True)
            top = curve.search(beta, CANDIDATES, QUALITY)
            exact, auto, topk = (f"{s * 1e6:,.0f}" for s in (curve.exact, expected, top.seconds))
            options: tuple[Any, Any] = ("", "")
            if near is None:
                auto = "exact"
            else:
                options = (near.probes, near.candidates)
            row = (k, f"{beta:.3f}", exact, auto, *options, topk, top.probes)
            table.add_row(*map(str, row), f"{top.mass:.3f}")
    if table.row_count:
        console.print(table)
