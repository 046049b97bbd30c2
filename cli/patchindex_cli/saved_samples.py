"""The samples that `patchindex sample` wrote, read again: their record, their machine and their steps."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchindex.errors import InputError, Option, SourceNotFoundError
from patchindex.schedules import LocalitySchedule

from .options import RunOptions, store_path
from .output import echo
from .sources import Training, fingerprint_of, open_denoiser

if TYPE_CHECKING:
    from torch import Tensor

    from patchindex import ScoreMachine
    from patchindex.explain import Steps
    from patchindex.runtime import Progress

TRAJECTORY = "trajectory.zarr"
# The settings of a run that are read, with their types.
SETTINGS: dict[str, Any] = {
    **dict.fromkeys(("machine", "train_windows", "estimator", "noise", "sampler"), str),
    "locality": dict | None,
    "options": dict,
    "seed": int,
    "steps": int | list,
}
OPTIONS = ("tolerance", "probes", "candidates", "quality")  # of estimators


@dataclass(frozen=True)
class SavedSample:
    """A sample as the files of its run have it."""

    number: int
    image: Tensor
    x_T: Tensor | None  # noqa: N815  (the field's name for it)
    label: int | None
    settings: dict[str, Any]


def read_record(folder: Path) -> dict[str, Any]:
    """Read samples.json."""
    path = folder / "samples.json"
    if not path.is_file():
        raise SourceNotFoundError(
            "no such file", where=path, remedy="give the folder that patchindex sample wrote"
        )
    try:
        record = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"is no JSON ({error})", where=path, remedy="draw the samples again") from error
    settings = record.get("settings") if isinstance(record, dict) else None
    settings = settings if isinstance(settings, dict) else {}
    drawn_by = settings.get("denoiser")
    if isinstance(drawn_by, str) and drawn_by != "ScoreMachine":
        raise InputError(
            f"were drawn by {drawn_by}, which has no patches",
            parameter="samples",
            remedy="give samples of IS, LS, ELS or bbELS",
        )
    wrong = [
        name
        for name, kind in SETTINGS.items()
        if name not in settings or not isinstance(settings[name], kind)
    ]
    if drawn_by is None or wrong or not isinstance(record.get("store") or {}, dict):
        missing = ", ".join(wrong) or "settings"
        raise InputError(f"is no record of samples: {missing}", where=path, remedy="draw the samples again")
    found: dict[str, Any] = record
    return found


def recorded_store(record: dict[str, Any]) -> Path | str:
    """Return the store that the samples name."""
    from patchindex.images import KNOWN_SETS

    path = (record.get("store") or {}).get("path")
    if not isinstance(path, str):
        raise InputError(
            "samples.json names no store", parameter="samples", remedy=["give ", Option("store")]
        )
    # `open_images` looks for the files of a URL, a pattern, a file::dataset or a known set.
    is_path = path not in KNOWN_SETS and not any(mark in path for mark in ("://", "*", "::"))
    if is_path and not os.path.exists(path):
        raise SourceNotFoundError(
            "the store of the samples is not there", where=path, remedy=["give ", Option("store")]
        )
    return store_path(path)


def check_fingerprint(training: Training, record: dict[str, Any], where: Path | str) -> None:
    """Refuse a store that differs from the store of the samples."""
    expected = (record.get("store") or {}).get("fingerprint")
    found = fingerprint_of(training)
    if expected is not None and found != expected:
        raise InputError(
            f"has other images than the samples were drawn from (fingerprint {found}, not {expected})",
            where=where,
            remedy=[
                *("give the store of the samples with ", Option("store"), ", or for images their options, "),
                *("such as ", Option("resize")),
            ],
        )


def machine_of(training: Training, record: dict[str, Any], run: RunOptions) -> ScoreMachine:
    """Return the machine that drew the samples."""
    import patchindex

    settings = record["settings"]
    schedule = settings["locality"]
    options = {name: settings["options"][name] for name in OPTIONS if name in settings["options"]}
    made = open_denoiser(
        settings["machine"],
        training,
        run,
        locality=None if schedule is None else LocalitySchedule.from_dict(schedule),
        settings={
            "estimator": settings["estimator"],
            "train_windows": settings["train_windows"],
            "noise": settings["noise"],
            **options,
        },
        parameter="samples",
    )
    assert isinstance(made, patchindex.ScoreMachine)
    return made


def read_sample(
    samples: Path, folder: Path, number: int, machine: ScoreMachine, record: dict[str, Any]
) -> SavedSample:
    """Read one sample, its noise and its label."""
    import torch

    from patchindex.images.formats.npz import read_arrays

    path = samples if samples.suffix == ".npz" else folder / "samples.npz"
    if not path.is_file():
        raise SourceNotFoundError("no such file", where=path, remedy="draw the samples again")
    arrays = read_arrays(path, required="images", optional=("x_T", "labels"))
    images = arrays["images"]
    if images.ndim != 4 or tuple(images.shape[1:]) != machine.shape or images.dtype.kind != "f":
        raise InputError(
            f"has images of shape {tuple(images.shape[1:])} and type {images.dtype}, not floats of shape "
            f"{machine.shape}",
            where=path,
            remedy="give samples of this store",
        )
    if number >= len(images):
        raise InputError(
            f"there is no sample {number}", parameter="image", remedy=f"use 0 to {len(images) - 1}"
        )
    noise, label = arrays.get("x_T"), -1
    if noise is not None and (noise.shape != images.shape or noise.dtype.kind != "f"):
        raise InputError("has noise x_T of another shape", where=path, remedy="draw the samples again")
    labels = arrays.get("labels")
    if labels is not None and labels.shape == (len(images),) and labels.dtype.kind in "iu":
        label = int(labels[number])
    return SavedSample(
        number,
        torch.from_numpy(images[number : number + 1].astype("float32")),
        None if noise is None else torch.from_numpy(noise[number : number + 1].astype("float32")),
        None if label == -1 else label,
        record["settings"],
    )


def steps_of(machine: ScoreMachine, drawn: SavedSample, folder: Path, progress: Progress) -> Steps:
    """Return the steps of a sample: from the saved trajectory, or drawn again."""
    from patchindex.explain import read_steps, redraw

    seed, trajectory = int(drawn.settings["seed"]), folder / TRAJECTORY
    if trajectory.exists():
        return read_steps(trajectory, drawn.number, drawn.image, seed=seed, label=drawn.label)
    if drawn.x_T is None:
        raise InputError(
            "has neither a trajectory nor the noise x_T", where=folder, remedy="draw the samples again"
        )
    if {"strength", "known_pixels"} & drawn.settings.keys():
        raise InputError(
            "samples of an image or of known pixels cannot be drawn again",
            parameter="samples",
            remedy=["draw the samples with ", Option("save_trajectory", True)],
        )
    echo(f"{folder} has no {TRAJECTORY}: sample {drawn.number} is drawn again", err=True)
    return redraw(
        machine,
        drawn.x_T,
        steps=drawn.settings["steps"],
        sampler=str(drawn.settings["sampler"]),
        spacing=str(drawn.settings.get("spacing", "uniform")),
        seed=seed,
        number=drawn.number,
        label=drawn.label,
        expected=drawn.image,
        progress=progress,
    )
