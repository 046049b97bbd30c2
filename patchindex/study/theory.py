"""`theory`: analytic denoisers against a trained network, image by image, from the same noise."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patchindex.build.settings import FINGERPRINT_IMAGES, some_images
from patchindex.checks import check_least
from patchindex.denoisers import Denoiser, TrainingDenoiser
from patchindex.errors import InputError
from patchindex.images import ImagesLike
from patchindex.images.by_label import TrainingImages
from patchindex.runtime import Progress, as_progress, plain_state
from patchindex.sampling import starting_noise
from patchindex.store.checksums import fingerprint
from patchindex.study.metrics import rmse
from patchindex.study.noised import Noised, correlation, determination, held_out_images, training_images
from patchindex.study.parts import Parts, compared_settings, hold_folder
from patchindex.study.replay import NETWORK, Replay, images_in, layout
from patchindex.study.theory_results import Theory

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["TheoryOptions", "theory"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TheoryOptions:
    """Steps, labels, sizes and seeds of a comparison with a network.

    Attributes
    ----------
    steps : int
        Grid points of DDIM for the denoisers; `steps - 1` steps are taken. Posterior means are compared at
        the times of this grid, and the network's own trajectory takes these steps.
    network_steps : int
        Grid points of DDIM for the network. Images of the network in `steps` are compared as well.
    labels : "auto", "each", int or None
        `"each"` gives image i the label i mod L of the L labels of the network; an integer is the label of
        all images. Denoisers then use the training images of the label only. None means no labels. `"auto"`
        means `"each"` for a network with labels, and None for others.
    along : int
        Posterior means are compared along the trajectories of this many images, the first ones.
    noised : int
        Posterior means are compared for this many training images and as many held-out images, noised.
    seed : int
        Seed of the noise, of the choice of images, of the estimators and of the bootstrap.
    batch_size : int
        Images per batch. Results of other batch sizes differ by the rounding of float32 only.
    """

    steps: int = 20
    network_steps: int = 150
    labels: str | int | None = "auto"
    along: int = 10
    noised: int = 10
    seed: int = 0
    batch_size: int = 16


DEFAULT_OPTIONS, DEFAULT_N = TheoryOptions(), 100


@plain_state()
def theory(
    network: Denoiser,
    denoisers: Mapping[str, Denoiser],
    n: int | None = None,
    *,
    x_T: Tensor | np.ndarray | None = None,
    options: TheoryOptions = DEFAULT_OPTIONS,
    held_out: ImagesLike | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reuse: str | Path | None = None,
    progress: Progress | None = None,
    client: Client | None = None,
) -> Theory:
    """Compare analytic denoisers with a network.

    The network and the denoisers draw n images by deterministic DDIM from the same noise. Then they estimate
    the clean images of the same noisy images: images on the network's own trajectories, training images with
    noise, and held-out images with noise.

    Parameters
    ----------
    network : Denoiser
        A network, or any other denoiser to compare with.
    denoisers : mapping of str to Denoiser
        Denoisers by name, with the noise schedule of the network. The summary compares the first one with
        each other denoiser. At least one is made of training images, and all of these have the same images.
    n : int, optional
        Number of images; by default that of `x_T`, or 100.
    x_T : Tensor or array, shape (n, C, H, W), optional
        Noise to start from, in place of the seed's. Finished results belong to this noise: no images can be
        added to them.
    options : TheoryOptions
        Steps, labels, sizes and seeds.
    held_out : anything `open_images` takes, optional
        Images of the size of the training images; with labels, if the images of the comparison have labels.
        Training images among them are left out.
    folder : str or Path, optional
        Folder for finished results: its sub-folder `parts` gets a file for each denoiser and batch.
    resume : bool
        Continue from the finished results in the folder. Images and denoisers may be added.
    overwrite : bool
        Replace the finished results in the folder. With `resume`, replace only the results of other settings,
        of another network or of other held-out images.
    reuse : str or Path, optional
        Folder of a comparison with another network of the same training images: take the images of
        denoisers with the same settings from there. They do not depend on the network.
    progress : Progress, optional
        Called as `progress(stage, done, total)`.
    client : distributed.Client, optional
        A Dask cluster that computes the batches: `patchindex.cluster.connect`. The workers must see the
        store of the denoisers.

    Returns
    -------
    Theory

    Raises
    ------
    InputError
        When shapes, noise schedules or training images differ, a number or a label is not possible, there are
        too few held-out images, another process writes to the folder, or the results in the folder, or in the
        folder to reuse, have other settings.
    OutputExistsError
        When the folder has results, and neither `resume` nor `overwrite` is given.

    Examples
    --------
    >>> import numpy as np, patchindex as pi
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    >>> denoisers = {name: pi.denoiser(name, images, locality=3) for name in ("ELS", "IS")}
    >>> options = TheoryOptions(steps=4, network_steps=4, along=1, noised=1)
    >>> found = theory(denoisers["ELS"], denoisers, n=2, options=options)
    >>> [(row["denoiser"], round(row["pearson_r"], 3)) for row in found.summary()][0]
    ('ELS', 1.0)
    """
    progress = as_progress(progress)
    check_least(
        steps=(options.steps, 2),
        network_steps=(options.network_steps, 2),
        along=(options.along, 0),
        noised=(options.noised, 0),
        seed=(options.seed, 0),
        batch_size=(options.batch_size, 1),
    )
    noise = None if x_T is None else starting_noise(network, n, options.seed, x_T)
    n = len(noise) if noise is not None else DEFAULT_N if n is None else n
    check_least(n=(n, 1))
    training = _check_denoisers(network, denoisers, options)
    labels = _labels(network, denoisers, options.labels)
    shared: dict[str, Any] = {
        "seed": options.seed,
        "steps": options.steps,
        "labels": labels,
        "shape": network.shape,
        "images": _images_record(training),
    }
    labelled = labels[0] is not None or any(each.label is not None for each in denoisers.values())
    if labelled and training.source.labels is not None:
        shared["training_labels"] = fingerprint(training.source.labels)
    if noise is not None:
        shared["x_T"] = fingerprint(noise.cpu().numpy())
    shapes = layout(network.shape, options.steps)
    other = None if reuse is None else Parts.of(Path(reuse), shared, shapes)
    place = None if folder is None else Path(folder)
    with hold_folder(place):
        parts = Parts(place, shared, shapes, resume=resume, overwrite=overwrite)
        for name, denoiser in {NETWORK: network, **denoisers}.items():
            log.info("%s: %r", name, denoiser)
            own = compared_settings(denoiser.settings)
            if denoiser.label is not None:
                own["label"] = denoiser.label
            parts.check(name, own, overwrite=overwrite)
        args = (labels, options.steps, options.seed, options.batch_size, progress, client, noise)
        replay = Replay(network, parts, *args)
        replay.check_network(overwrite=overwrite)
        if other is not None:
            for name in denoisers:
                parts.reuse(other, name, images_in(options.steps), range(n))
        inputs = _run(replay, denoisers, n, options, training, held_out, overwrite=overwrite)
    settings = {
        "n": n,
        "x_T": "drawn",
        **asdict(options),
        **shared,
        "network": network.settings,
        "denoisers": {name: denoiser.settings for name, denoiser in denoisers.items()},
    }
    grids = dict.fromkeys((options.network_steps, options.steps))
    names = {f"{NETWORK}, {steps} steps": (NETWORK, images_in(steps)) for steps in grids}
    names |= {name: (name, images_in(options.steps)) for name in denoisers}
    images = {name: torch.from_numpy(parts.get(*place, range(n))["images"]) for name, place in names.items()}
    rows = [
        row
        for steps in grids
        for name in denoisers
        for row in _image_rows(replay, name, steps, images[name], images[f"{NETWORK}, {steps} steps"])
    ]
    points = [row for name, denoiser in denoisers.items() for row in _points(replay, name, denoiser, inputs)]
    return Theory(rows, points, images, settings)


def _run(
    replay: Replay,
    denoisers: Mapping[str, Denoiser],
    n: int,
    options: TheoryOptions,
    training: TrainingImages,
    held_out: ImagesLike | None,
    *,
    overwrite: bool,
) -> dict[str, Noised]:
    """Compute all results that are missing; return the noisy images at which posterior means are compared."""
    network, inputs = replay.network, dict[str, Noised]()
    labels = [replay.label_of(image) for image in range(options.noised)]
    clean = {"training": training_images(training, labels, options.seed)} if labels else {}
    if labels and held_out is not None:
        clean["held-out"] = held_out_images(held_out, training, labels, options.seed)
    for steps in dict.fromkeys((options.network_steps, options.steps)):
        replay.draw(NETWORK, network, n, steps, f"{NETWORK}: images in {steps} steps")
    if options.along:
        inputs["trajectory"] = replay.trajectory(min(options.along, n))
    for kind, images in clean.items():
        inputs[kind] = replay.noised(kind, images, overwrite=overwrite)
    for number, (name, denoiser) in enumerate(denoisers.items(), 1):
        replay.draw(name, denoiser, n, options.steps, f"{name} ({number} of {len(denoisers)}): images")
    for number, (name, denoiser) in enumerate(denoisers.items(), 1):
        stage = f"{name} ({number} of {len(denoisers)}): posterior means"
        replay.estimate(name, denoiser, inputs, stage)
    return inputs


def _image_rows(
    replay: Replay, name: str, steps: int, drawn: torch.Tensor, reference: torch.Tensor
) -> Iterator[dict[str, Any]]:
    """Yield a row for each image of a denoiser, against the network's image in some steps."""
    values: dict[str, Any] = {
        "pearson_r": correlation(drawn, reference),
        "r2": determination(drawn, reference),
        "mse": rmse(drawn, reference).square(),
        "seconds": replay.parts.get(name, images_in(replay.steps), range(len(drawn)))["seconds"],
    }
    for image in range(len(drawn)):
        place = {"denoiser": name, "network_steps": steps, "image": image, "label": replay.label_of(image)}
        yield place | {key: _number(each[image]) for key, each in values.items()}


def _points(
    replay: Replay, name: str, denoiser: Denoiser, inputs: Mapping[str, Noised]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each noisy image and time of a denoiser."""
    for kind, noised in inputs.items():
        measures = replay.parts.get(name, kind, range(len(noised)))
        for image in range(len(noised)):
            for step, t in enumerate(replay.times):
                place = {"denoiser": name, "inputs": kind, "image": image, "label": replay.label_of(image)}
                level = {"t": t, "beta": replay.network.noise(t), "k": denoiser.scale_at(t)}
                values = {key: _number(each[image, step]) for key, each in measures.items()}
                yield place | level | values


def _number(value: Any) -> float | None:
    """Return a float; None where a measure does not apply."""
    return float(value) if math.isfinite(value) else None


def _check_denoisers(
    network: Denoiser, denoisers: Mapping[str, Denoiser], options: TheoryOptions
) -> TrainingImages:
    """Refuse denoisers that cannot be compared with the network; return their training images."""

    def refuse(what: str, remedy: str) -> InputError:
        return InputError(what, parameter="denoisers", remedy=remedy)

    if not denoisers:
        raise refuse("there are none", "give at least one")
    if NETWORK in denoisers:
        raise refuse(f"{NETWORK!r} is the name of the network", "use another name")
    times = [i / options.steps for i in range(1, options.steps)]
    records: dict[str, dict[str, Any]] = {}
    found: TrainingImages | None = None
    for name, denoiser in denoisers.items():
        if denoiser.shape != network.shape:
            what = f"{name!r} has images of shape {denoiser.shape}, the network of {network.shape}"
            raise refuse(what, "use a store of images of the network's size")
        if any(not math.isclose(denoiser.noise(t), network.noise(t), rel_tol=1e-6) for t in times):
            raise refuse(f"{name!r} has another noise schedule than the network", "give noise=network.noise")
        if isinstance(denoiser, TrainingDenoiser):
            records[name] = _images_record(denoiser.training)
            found = found or denoiser.training
    if found is None:
        raise refuse("none is made of training images", "add one, such as pi.denoiser('IS', images)")
    first = next(iter(records))
    for name, record in records.items():
        if record != records[first]:
            raise refuse(f"{name!r} has other training images than {first!r}", "use the same store")
    return found


def _images_record(training: TrainingImages) -> dict[str, Any]:
    """Return a record of training images that differs from the record of other images."""
    source = training.in_source_order()  # a store sorts its images by label
    return {"count": len(source), "fingerprint": fingerprint(some_images(source, FINGERPRINT_IMAGES))}


def _labels(
    network: Denoiser, denoisers: Mapping[str, Denoiser], wanted: str | int | None
) -> Sequence[int | None]:
    """Return the labels that images take in turn."""
    its_labels = getattr(network, "labels", None)
    known = [] if its_labels is None else [int(label) for label in its_labels]
    if wanted == "auto":
        wanted = "each" if known else None
    if wanted == "each" and not known:
        raise InputError("the network has no labels", parameter="labels", remedy="leave it out")
    if isinstance(wanted, str) and wanted != "each":
        raise InputError(
            f"unknown labels {wanted!r}", parameter="labels", remedy="use 'auto', 'each', a label or None"
        )
    labels: Sequence[int | None] = known if isinstance(wanted, str) else [wanted]
    for denoiser in (network, *denoisers.values()):
        for label in labels:
            denoiser.check_label(label)
    return labels
