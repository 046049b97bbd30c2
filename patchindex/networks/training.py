"""`train`: the training of a network on a set of images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from patchindex.build.workdir import check_writable, hold_lock
from patchindex.devices import resolve_device
from patchindex.errors import InputError, Option, OutputExistsError
from patchindex.images import ImagesLike, LabelsLike, open_images
from patchindex.networks.batches import split_images
from patchindex.networks.files import FILES, LOCK, RUN, STATE, WEIGHTS
from patchindex.networks.loop import Report, Training
from patchindex.networks.settings import OtherRunError, TrainSettings
from patchindex.runtime import Progress, as_progress, plain_state
from patchindex.runtime import threads as use_threads

__all__ = ["train"]

log = logging.getLogger(__name__)


@plain_state()
def train(
    source: ImagesLike,
    run_folder: str | Path,
    settings: TrainSettings | None = None,
    *,
    labels: LabelsLike | None = None,
    device: str | torch.device | None = None,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Report | None = None,
    command: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a network to predict the noise of images, and write a run folder.

    Each step minimises the mean over a batch of

        |network(sqrt(1 - beta(t)) x_0 + sqrt(beta(t)) eps, t) - eps|^2,    t uniform on 0, .001, ..., .999

    by AdamW without weight decay. The order of the images depends on the seed and the epoch, t and eps depend
    on the seed and the step. A run that was killed and resumed therefore ends with the same weights on the
    same machine with the same number of threads, except where a library's kernels on a GPU are not
    deterministic.

    Parameters
    ----------
    source : anything `open_images` takes
        The images, scaled to [-1, 1]. Images that do not fit into half of the memory are read at each step.
    run_folder : path
        Folder for the files; see `patchindex.networks.files`. A checkpoint is written every two minutes.
    settings : TrainSettings, optional
    labels : optional
        Labels of the images, as for `open_images`.
    device : str or torch.device, optional
    threads : int, optional
        Number of CPU threads. The default is the number that torch uses.
    resume : bool
        Continue an unfinished run, or a finished run with larger limits. Starts a run where there is none. A
        network without `state.safetensors` cannot be continued, and is refused.
    overwrite : bool
        Replace an earlier run. With `resume`, replace only a run of other settings or images.
    progress : Progress, optional
        Called as `progress(stage, done, total)`.
    report : callable, optional
        Called with each new row of `loss.csv`, a dict.
    command : mapping, optional
        The command that starts the training, as plain data. `run.json` keeps it.

    Returns
    -------
    dict
        The content of `run.json`.

    Raises
    ------
    InputError
        When a setting does not fit the images, the folder has a run already, or the run to resume has other
        settings or images.
    PatchIndexError
        When the loss is not finite.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    >>> settings = TrainSettings(options={"channels": 16, "layers": 1}, steps=3, batch_size=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     train(images, folder, settings)["step"]
    3
    """
    settings = settings or TrainSettings()
    images, held_out = split_images(open_images(source, labels=labels), settings)
    folder, progress = Path(run_folder), as_progress(progress)
    existing = [name for name in FILES if (folder / name).exists()]
    if existing and not (resume or overwrite):
        raise OutputExistsError(
            f"already has {', '.join(existing)}",
            where=folder,
            remedy=[
                "continue with ",
                Option("resume", True),
                ", or replace with ",
                Option("overwrite", True),
            ],
        )
    if not overwrite and STATE not in existing and (WEIGHTS in existing or RUN in existing):
        raise OutputExistsError(
            f"has a network, and no {STATE} to continue from",
            where=folder,
            remedy=["use another folder, or replace with ", Option("overwrite", True)],
        )
    device = resolve_device(device)
    training = Training(images, held_out, settings, device)
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    busy = InputError("another process trains in this folder", where=folder, remedy="wait until it ends")
    with use_threads(threads) as used, hold_lock(folder / LOCK, busy):
        training.describe(used)
        resumed = resume and (folder / STATE).exists()
        try:
            if resumed:
                training.restore(folder)
        except OtherRunError:
            if not overwrite:
                raise
            training, resumed = Training(images, held_out, settings, device), False
            training.describe(used)
        if command is not None:
            training.record["command"] = dict(command)
        training.batches.keep_in_memory(progress)
        if not resumed:
            for name in existing:
                (folder / name).unlink()
        log.info("training a %s on %d images, %d threads", settings.arch, len(images), used)
        training.run(folder, progress, report)
    return training.record
