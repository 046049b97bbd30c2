"""`calibrate`: find the locality scale of each noise level, on a network or on held-out images."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from patchindex.build import parse_memory
from patchindex.build.settings import FINGERPRINT_IMAGES, some_images
from patchindex.checks import check_least, check_optional
from patchindex.denoisers.base import Denoiser
from patchindex.denoisers.from_images import is_store, refuse_labels
from patchindex.devices import memory_budget, resolve_device
from patchindex.errors import InputError, Option
from patchindex.exact import load_kernel
from patchindex.exact.request import WORKING_MEMORY
from patchindex.images import ImagesLike, LabelsLike
from patchindex.images.by_label import TrainingImages
from patchindex.index import PatchIndex, open_index
from patchindex.runtime import Progress, as_progress, part_of, plain_state
from patchindex.runtime import threads as use_threads
from patchindex.schedules import NoiseSchedule
from patchindex.store.checksums import fingerprint
from patchindex.study.calibration import COLUMNS, Calibration
from patchindex.study.calibration_ways import CalibrationOptions, OnImages, OnNetwork
from patchindex.study.parts import Parts, hold_folder
from patchindex.study.scale_machine import ScaleMachine, default_scales

__all__ = ["CalibrationOptions", "calibrate"]

log = logging.getLogger(__name__)

KIND = "measures"  # of the parts
STAGE = "calibrating"
SAMPLES, HELD_OUT = 10, 20  # images by default, on a network and without
SAME_NETWORK = 1e-3  # relative difference of the norms of two scores of one network at the same image

DEFAULT_OPTIONS = CalibrationOptions()


@plain_state()
def calibrate(
    source: PatchIndex | ImagesLike,
    network: Denoiser | None = None,
    machine: str | None = None,
    scales: Sequence[int] | None = None,
    *,
    labels: LabelsLike | None = None,
    held_out: ImagesLike | None = None,
    n: int | None = None,
    steps: int = 20,
    options: CalibrationOptions = DEFAULT_OPTIONS,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Find the locality scale of each noise level.

    With a network, `n` images are drawn from it by DDIM. At each step the machine is evaluated at the noisy
    image that the network saw, at every scale; the scale whose score is most similar to the score of the
    network is the scale of the sample, and the median over samples is the scale of the noise level. (Kamb &
    Ganguli, arXiv 2412.20292.)

    Without a network, `n` held-out images x_0 get noise of each level. The scale of the noise level has the
    least mean of `|mu_k(x_t) - x_0|^2`. The same noisy images are also denoised as if the clean image were a
    training image: a large scale then finds the image itself, and its error falls below the error on images
    that it has not seen.

    Parameters
    ----------
    source : PatchIndex, or anything `open_images` takes
        A patch index (or its path), or raw images.
    network : Denoiser, optional
        The network; any denoiser of images of the same shape.
    machine : str, optional
        `"LS"`, `"ELS"` or `"bbELS"`; by default the machine of the index, or `"bbELS"`.
    scales : sequence of int, optional
        Locality scales to compare; by default `default_scales`.
    labels : array of int or path, optional
        Labels of raw images.
    held_out : anything `open_images` takes, optional
        Held-out images, of which `n` are drawn with the seed; training images among them are left out. By
        default `n` images of the source are set aside: they and their copies are no training images.
    n : int, optional
        Number of samples (10 by default) or held-out images (20 by default).
    steps : int
        Points of the time grid: the noise levels are beta(i / steps), i from 1 to steps - 1.
    options : CalibrationOptions
        All other options.
    folder : path, optional
        Keep the finished parts, each a few samples at one step, in this folder.
    resume, overwrite : bool
        Continue with, or replace, the parts in the folder.
    progress : Progress, optional
        Called as `progress(stage, done, total)`.

    Returns
    -------
    Calibration

    Raises
    ------
    InputError
        When the settings do not fit the images, the network, the index or the parts in the folder, or another
        process writes to the folder.

    Examples
    --------
    A score machine in place of a network: its own scale is found.

    >>> import patchindex as pi
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    >>> network = pi.ScoreMachine(images, machine="LS", locality=5)
    >>> found = calibrate(images, network, "LS", [3, 5, 7], n=1, steps=3)
    >>> [row["k"] for row in found.summary()]
    [5, 5]
    """
    progress = as_progress(progress)
    if is_store(source):
        source = open_index(source)
    index = source if isinstance(source, PatchIndex) else None
    if index is not None:
        refuse_labels(labels)
    training = TrainingImages(source, labels) if index is None else index.training  # type: ignore[arg-type]
    kind, windows = _machine_of(index, machine, options.train_windows)
    use_auto = _use_auto(options, index, kind, network)
    check_least(steps=(steps, 2))
    check_optional(n=(n, 1))
    given = None if options.memory is None else parse_memory(options.memory)
    memory = memory_budget([resolve_device(options.device)], given, WORKING_MEMORY)
    theory = ScaleMachine(training, kind, windows, index if use_auto else None, memory)
    ks = _scales_of(theory, scales)
    wanted = training.range_of(options.label)
    if index is not None:
        index.check_images(*wanted)
    way: OnNetwork | OnImages
    if network is not None:
        if held_out is not None:
            raise InputError(
                "cannot be used with a network",
                parameter="held_out",
                remedy=["leave out this option, or ", Option("network")],
            )
        way = OnNetwork.of(theory, network, n or SAMPLES, steps, options)
    else:
        way = OnImages.of(theory, held_out, n or HELD_OUT, steps, options)
    theory = way.theory
    _check_levels(way.noise, steps)
    log.info("%s, scales %s, %d noise levels", theory.machine, ", ".join(map(str, ks)), steps - 1)
    settings = {
        "machine": theory.machine,
        "train_windows": theory.train_windows,
        "scales": list(ks),
        "images": len(theory.training),
        "image_size": list(training.size),
        "steps": steps,
        **way.settings,
        **{name: getattr(options, name) for name in ("label", "pixels", "ratio", "seed", "estimator")},
        "fingerprint": fingerprint(some_images(theory.training.source, FINGERPRINT_IMAGES)),
    }
    if training.source.labels is not None:
        settings["training_labels"] = fingerprint(training.source.labels)
    if use_auto and index is not None:
        settings["build_ids"] = {k: index.scale(k).build_id for k in ks if k in index.scales}
    place = None if folder is None else Path(folder)
    shapes: dict[str, tuple[int, ...]] = {name: (len(ks),) for name in (*way.MEASURES, "seconds")}
    shapes["norm"] = ()
    with hold_folder(place), use_threads(options.threads):
        parts = Parts(place, settings, lambda *_: shapes, resume=resume, overwrite=overwrite)
        load_kernel()
        _check_network(way, parts, overwrite=overwrite)
        _run(way, ks, options.pixels, _batches(way, options.batch_size), parts, progress)
        reported = {**settings, "source": training.source.name, **way.reported}
        return Calibration(list(_rows(way, ks, parts)), reported)


def _check_levels(noise: NoiseSchedule, steps: int) -> None:
    """Refuse a noise schedule with fewer levels than steps: a locality schedule has one scale for each."""
    betas = [noise(i / steps) for i in range(1, steps)]
    if any(low >= high for low, high in pairwise(betas)):
        raise InputError(
            f"of {steps} steps, two have the same noise level",
            parameter="steps",
            remedy="use fewer steps",
        )


def _machine_of(index: PatchIndex | None, machine: str | None, windows: str | None) -> tuple[str, str]:
    """Return the machine and its training windows: as given, or else of the index."""
    if index is not None and index.machine != "IS":
        machine = machine or index.machine
        if machine == index.machine:
            windows = windows or index.train_windows
    machine = machine or "bbELS"
    if machine == "IS":
        raise InputError("IS has no locality scale", parameter="machine", remedy="use LS, ELS or bbELS")
    return machine, windows or "valid"


def _use_auto(
    options: CalibrationOptions, index: PatchIndex | None, machine: str, network: Denoiser | None
) -> bool:
    if options.estimator != "auto":
        return False
    problem = (
        "needs a store with an index" if index is None or not index.scales
        else f"needs the machine of the store, {index.machine}" if index.machine != machine
        else "needs a network" if network is None
        else None
    )  # fmt: skip
    if problem is not None:
        raise InputError(f"auto {problem}", parameter="estimator", remedy="use exact")
    return True


def _scales_of(theory: ScaleMachine, scales: Sequence[int] | None) -> tuple[int, ...]:
    """Return the scales, ascending, each of which fits the images."""
    if scales is None:
        return default_scales(theory.training.size)
    if len(scales) < 2:
        raise InputError(
            f"there is nothing to choose from {list(scales)}",
            parameter="scales",
            remedy="give two scales or more",
        )
    return tuple(sorted({theory.geometry(k).k for k in scales}))


def _name(step: int) -> str:
    return f"step-{step}"


def _batches(way: OnNetwork | OnImages, size: int) -> list[list[int]]:
    """Cut the numbers of the samples into batches of one label each."""
    by_label: dict[int | None, list[int]] = {}
    for j, label in enumerate(way.labels):
        by_label.setdefault(label, []).append(j)
    return [mine[first : first + size] for mine in by_label.values() for first in range(0, len(mine), size)]


def _run(
    way: OnNetwork | OnImages,
    scales: Sequence[int],
    pixels: int | None,
    batches: Sequence[Sequence[int]],
    parts: Parts,
    progress: Progress,
) -> None:
    """Compare every sample at every step and scale that the parts do not have."""
    steps, size = range(1, way.steps), way.theory.training.size
    costs = np.array([way.theory.cost(k, pixels or size[0] * size[1]) for k in scales])
    share = costs / costs.sum() / len(way.labels) / len(steps)  # of a sample and step in all work
    done = 0.0
    for samples in batches:
        missing = {i for i in steps if parts.missing(_name(i), KIND, samples)}
        for step in way.trajectories(samples) if missing else ():
            if step.i in missing:
                ends = np.cumsum([done, *share * len(samples)])
                found, seconds = [], []
                for number, k in enumerate(scales):
                    start = time.perf_counter()
                    part = part_of(progress, STAGE, float(ends[number]), float(ends[number + 1]))
                    found.append(way.compare(step, k, part))
                    seconds.append(
                        np.full(len(samples), round((time.perf_counter() - start) / len(samples), 4))
                    )
                measures = {name: np.stack([each[name] for each in found], 1) for name in found[0]}
                measures |= {"seconds": np.stack(seconds, 1), "norm": step.norms}
                parts.add(_name(step.i), KIND, samples, **measures)
            done += float(share.sum()) * len(samples)
            progress(STAGE, done, 1.0)
        if not missing:
            done += float(share.sum()) * len(samples) * len(steps)


def _rows(way: OnNetwork | OnImages, scales: Sequence[int], parts: Parts) -> Iterator[dict[str, Any]]:
    """Yield the rows of a `Calibration`."""
    for i in range(1, way.steps):
        found = parts.get(_name(i), KIND, range(len(way.labels)))
        place = {"step": i, "t": i / way.steps, "beta": way.noise(i / way.steps)}
        for j, label in enumerate(way.labels):
            for number, k in enumerate(scales):
                measures = {name: float(found[name][j, number]) for name in found if name != "norm"}
                yield {**dict.fromkeys(COLUMNS), "sample": j, "label": label, **place, "k": k, **measures}


def _check_network(way: OnNetwork | OnImages, parts: Parts, *, overwrite: bool) -> None:
    """Refuse parts of another network, or delete them: at the first step two networks see the same noise."""
    name, samples = _name(way.steps - 1), range(len(way.labels))
    missing = set(parts.missing(name, KIND, samples))
    for j in (j for j in samples if j not in missing):
        before, now = parts.get(name, KIND, [j])["norm"][0], next(way.trajectories([j])).norms[0]
        if abs(before - now) > SAME_NETWORK * now:
            parts.refuse("the unfinished run is of another network", overwrite=overwrite)
        return
