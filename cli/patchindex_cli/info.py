"""`patchindex info`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchindex.errors import InputError

from .building import EXACT_IS_FASTER, describe_drift
from .options import LocalPath, json_option, store_path
from .output import add_row, byte_size, count, echo, echo_field, new_table, print_json, print_table, shorten
from .store_reports import print_unfinished, save_plot

if TYPE_CHECKING:
    from patchindex import PatchIndex

LABELS_SHOWN = 12


@click.command(short_help="Print the contents of a store.")
@click.argument("store", type=store_path)
@click.option(
    "--plot",
    type=LocalPath(),
    metavar="FILE",
    help="Also draw the scales and the operating curve, as .png, .pdf or .svg.",
)
@json_option
def info(store: Path | str, plot: Path | None, as_json: bool) -> None:
    """Print the contents of a STORE: settings, source, and the index of each locality scale.

    Of an unfinished build, print the stages that are done, and the command that continues the build.

    \b
    Columns of the first table:
      k             locality scale: width of a patch in pixels
      patches       patches in the index
      lists         inverted lists that the patches are sorted into
      classes       position classes; a pixel is compared with the patches of its class only
      code          bytes of a patch's code
      variance      share of the patches' variance that the codes keep
      size          bytes on disk; "per patch" divides them by the number of patches
      build         seconds that the build took

    \b
    Columns of the second table, the operating curve (microseconds per pixel):
      beta          noise variance
      exact         exact score
      auto          estimator auto, with the probes and candidates that it chooses
      topk          estimator topk, with the probes that it chooses
      recall        weight of topk's patches relative to the heaviest patches

    \b
    Columns of the third table, the expected time of an image of 20 steps, where the store was tuned:
      tolerance     largest standard error of a pixel, as for sample --tolerance
      auto          seconds per image by estimator auto
      exact / auto  how many times longer estimator exact takes

    \b
    Examples:
      patchindex info fashion.zarr
      patchindex info fashion.zarr --plot fashion.png
      patchindex info fashion.zarr --json
    """
    import patchindex
    from patchindex.build import unfinished_build

    unfinished = None if "://" in str(store) else unfinished_build(store)
    if unfinished is not None and not Path(store).exists():
        if plot is not None:
            raise InputError("is unfinished", where=store, remedy="plot the finished store")
        if as_json:
            print_json({"path": str(store), "unfinished": unfinished.as_dict()})
        else:
            print_unfinished(store, unfinished)
        return
    index = patchindex.open_index(store)
    found = index.info()
    if plot is not None:
        save_plot(found, plot, store)
    if as_json:
        print_json(found if unfinished is None else {**found, "unfinished": unfinished.as_dict()})
        return
    for name, value in _summary(found).items():
        if value:
            echo_field(name, value)
    scales = found["indexes"]
    if scales:
        _print_indexes(index, scales, store)
    if unfinished is not None:
        echo("")
        print_unfinished(store, unfinished)


def _print_indexes(index: PatchIndex, scales: dict[str, dict[str, Any]], store: Path | str) -> None:
    """Print the tables of the scales, their drift, and the scales that are not tuned."""
    from patchindex.study.tune import exact_is_faster

    _print_scales(scales)
    for k, scale in scales.items():
        for drift in scale.get("drift", []):
            added = count(drift["images"], "appended image")
            echo(f"k = {k}: {added}: {describe_drift(drift, scale['pca_energy'])}")
    _print_curves(scales)
    _print_tolerances(index)
    if missing := [k for k, scale in scales.items() if "operating_curve" not in scale]:
        where = "the original store" if "://" in str(store) else store
        reason = EXACT_IS_FASTER if exact_is_faster(index) else f"run patchindex tune {where}"
        echo(f"not tuned: k = {shorten(missing, len(missing))}; {reason}")


def _summary(found: dict[str, Any]) -> dict[str, str]:
    """Return the lines above the tables; an empty one is not printed."""
    _, height, width, channels = found["shape"]
    appended, skipped = found["settings"].get("appended", []), found["skipped"]
    windows = f" ({found['train_windows']} training windows)"
    return {
        "machine": found["machine"] + (windows if found["machine"] == "ELS" else ""),
        "images": f"{found['images']:,} of {height} x {width} x {channels}, from {found['source']}",
        "appended": shorten([_appended(each) for each in appended]),
        "skipped": f"{count(len(skipped), 'file')} that cannot be decoded: {shorten(skipped)}"
        if skipped
        else "",
        "file names": _named(found["named_images"], found["images"]),
        "labels": _labels(found["labels"], found["label_names"]),
        **_locality(found["locality"]),
        "size": byte_size(found["bytes"]),
        "built": f"{found['created']} by patchindex {found['versions']['patchindex']}",
        "fingerprint": found["fingerprint"],
    }


def _named(named: int, images: int) -> str:
    return "" if not named else "of all images" if named == images else f"of {count(named, 'image')}"


def _appended(call: dict[str, Any]) -> str:
    duplicates = sum(call.get("duplicates", {}).values())
    text = f"{call['images']:,} from {call['source']}"
    return f"{text} ({count(duplicates, 'duplicate')})" if duplicates else text


def _locality(schedule: dict[str, Any] | None) -> dict[str, str]:
    """Return the line of the schedule, and the line of its provenance."""
    if schedule is None:
        return {"locality": "none"}
    scales = ", ".join(str(k) for _, k in schedule["pairs"])
    first, last = schedule["pairs"][0][0], schedule["pairs"][-1][0]
    origin = schedule["provenance"] or {}
    size = origin.get("image_size")
    parts = [
        origin.get("network"),
        origin.get("data"),
        "{} x {}".format(*size) if size else "",
        f"{origin['noise']} noise schedule" if origin.get("noise") else "",
        origin.get("method"),
    ]
    return {
        "locality": f"{schedule['name']}: k = {scales} from beta = {first:.3g} to {last:.3g}",
        "calibrated": "; ".join(filter(None, parts)),
    }


def _labels(labels: list[int] | None, names: list[str] | None) -> str:
    if labels is None:
        return "none"
    if names is None:
        return shorten(labels, LABELS_SHOWN)
    return shorten([f"{i} {names[i]}" for i in labels], LABELS_SHOWN, "; ")  # "Smiling, not Male" has a comma


def _print_scales(scales: dict[str, dict[str, Any]]) -> None:
    columns = ("k", "patches", "lists", "classes", "code", "variance", "size", "per patch", "build")
    echo("\npatch index")
    table = new_table(columns)
    for k, scale in scales.items():
        add_row(
            table,
            k,
            f"{scale['patches']:,}",
            f"{scale['lists']:,}",
            f"{scale['position_classes']:,}",
            f"{scale['pca_dims']} B",
            f"{scale['pca_energy']:.2%}",
            byte_size(scale["bytes"]),
            f"{scale['bytes'] / scale['patches']:.1f} B",
            f"{sum(scale['seconds'].values()):.1f} s",
        )
    print_table(table)


def _print_curves(scales: dict[str, dict[str, Any]]) -> None:
    """Print the settings that `auto` and `topk` choose by default, and their expected cost."""
    from patchindex.estimators import ESTIMATORS
    from patchindex.estimators.curve import OperatingCurve
    from patchindex.estimators.topk import QUALITY

    tolerance = _default(ESTIMATORS["auto"], "tolerance")
    candidates = _default(ESTIMATORS["topk"], "candidates")
    columns = ("k", "beta", "exact", "auto", "probes", "candidates", "topk", "probes", "recall")
    table = new_table(columns)
    for k, scale in scales.items():
        if (curve := OperatingCurve.read(scale.get("operating_curve"), f"scale {k}")) is None:
            continue
        for beta in sorted({point.beta for point in curve.near}):
            near, seconds = curve.near_field(beta, tolerance, steps=True)
            top = curve.search(beta, candidates, QUALITY)
            auto = ("exact", "", "") if near is None else (_micro(seconds), near.probes, near.candidates)
            row = (k, f"{beta:.3f}", _micro(curve.exact), *auto, _micro(top.seconds), top.probes)
            add_row(table, *map(str, row), f"{top.mass:.3f}")
    if table.row_count:
        echo(
            f"operating curve: microseconds per pixel; auto to a tolerance of {tolerance}, "
            f"topk with {candidates} candidates to a quality of {QUALITY}"
        )
        print_table(table)


def _print_tolerances(index: PatchIndex) -> None:
    """Print what a tolerance costs, if the store says."""
    from patchindex.study.cost_of_tolerances import cost_of_tolerances

    table = new_table(("tolerance", "auto", "exact / auto"))
    for each in cost_of_tolerances(index):
        add_row(table, f"{each.tolerance:g}", f"{each.auto:.2f}", f"{each.exact / each.auto:.1f}")
    if table.row_count:
        echo("expected seconds per image of 20 steps, where the store was tuned; exact has no error")
        print_table(table)


def _default(estimator: Any, option: str) -> Any:
    return inspect.signature(estimator).parameters[option].default


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f}"
