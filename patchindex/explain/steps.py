"""The steps of one sample, read from a trajectory or drawn again, and the patches behind each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from patchindex.checks import check_least
from patchindex.denoisers import Attributions, ScoreMachine
from patchindex.errors import InputError, PatchIndexWarning, warn
from patchindex.runtime import Progress, as_progress, part_of
from patchindex.sampling import Trajectory, TrajectoryFile, sample

__all__ = ["Steps", "explain_steps", "one_image", "read_steps", "redraw"]

ARRAYS = ("x", "mean", "stderr", "ess", "captured_mass")
SAME = 0.02  # in [-1, 1]: rounding changes an image that is drawn again by less


@dataclass(frozen=True)
class Steps:
    """The steps of one sample, the noisiest first.

    Attributes
    ----------
    t : numpy.ndarray, shape (S,)
        Time before each step.
    k : numpy.ndarray, shape (S,), int64
        Locality scale of each step, 0 for none.
    x, mean : Tensor, shape (S, C, H, W), float32
        The noisy image before each step, and its posterior mean.
    stderr, ess, captured_mass : numpy.ndarray, shape (S, H, W)
        As in `Estimate`.
    image : Tensor, shape (C, H, W)
        The sample.
    number : int
        Number of the sample in its run.
    seed : int
        Seed of the run.
    label : int or None
        Label of the run.
    """

    t: np.ndarray
    k: np.ndarray
    x: Tensor
    mean: Tensor
    stderr: np.ndarray
    ess: np.ndarray
    captured_mass: np.ndarray
    image: Tensor
    number: int = 0
    seed: int = 0
    label: int | None = None

    @classmethod
    def of(cls, trajectory: Trajectory, image: Tensor, *, number: int, seed: int, label: int | None) -> Steps:
        """Return the steps of the first image of a trajectory; `image` (1, C, H, W) is the sample."""
        x, mean, stderr, ess, captured = (getattr(trajectory, name)[:, 0] for name in ARRAYS)
        return cls(
            trajectory.t,
            trajectory.k,
            torch.from_numpy(x),
            torch.from_numpy(mean),
            stderr,
            ess,
            captured,
            image[0],
            number,
            seed,
            label,
        )

    def __len__(self) -> int:
        return len(self.t)


def one_image(machine: ScoreMachine, x: Tensor, name: str) -> Tensor:
    """Return one image (1, C, H, W) on the machine's device; refuse others."""
    x = machine.check_x(x, name)
    if len(x) != 1:
        raise InputError(f"has {len(x)} images", parameter=name, remedy=f"give one, such as {name}[:1]")
    return x


def redraw(
    machine: ScoreMachine,
    x_T: Tensor,
    *,
    steps: int | Sequence[float] = 20,
    sampler: str = "ddim",
    spacing: str = "uniform",
    seed: int = 0,
    number: int = 0,
    label: int | None = None,
    expected: Tensor | None = None,
    progress: Progress | None = None,
) -> Steps:
    """Draw one sample again from its noise, and keep all of its steps.

    Parameters
    ----------
    machine : ScoreMachine
    x_T : Tensor, shape (1, C, H, W)
        The noise that the sample started from, such as `result.x_T[3:4]`.
    steps, sampler, spacing, seed, label
        Settings of the run, as for `sample`.
    number : int
        Number of the sample in its run.
    expected : Tensor, shape (1, C, H, W), optional
        The sample. A warning says if the new image differs.
    progress : Progress, optional
        Called as `progress(stage, done, total)`.

    Returns
    -------
    Steps

    Raises
    ------
    InputError
        As for `sample`, and when `x_T` or `expected` is not one image.

    Examples
    --------
    >>> images = np.random.default_rng(0).integers(0, 256, (10, 8, 8), np.uint8)
    >>> m = ScoreMachine(images, machine="LS", locality=3)
    >>> found = redraw(m, torch.randn(1, 1, 8, 8), steps=5)
    >>> found.x.shape, found.t.tolist()
    (torch.Size([4, 1, 8, 8]), [0.8, 0.6, 0.4, 0.2])
    """
    check_least(number=(number, 0))
    x_T = one_image(machine, x_T, "x_T")
    expected = None if expected is None else one_image(machine, expected, "expected")
    drawn = sample(
        machine,
        None,
        steps,
        sampler,
        seed,
        x_T,
        spacing=spacing,
        label=label,
        trajectory=True,
        first=number,
        progress=progress,
    )
    image = drawn.images.cpu()
    if expected is not None and float((image - expected.cpu()).abs().max()) > SAME:
        warn(PatchIndexWarning(
            "the sample, drawn again, differs: another version or other settings made it",
            remedy="draw the samples with --save-trajectory",
        ))  # fmt: skip
        image = expected.cpu()
    assert drawn.trajectory is not None
    label = machine.label if label is None else label
    return Steps.of(drawn.trajectory, image, number=number, seed=seed, label=label)


def read_steps(
    path: str | Path, number: int, image: Tensor, *, seed: int = 0, label: int | None = None
) -> Steps:
    """Read the steps of one sample from a trajectory that `patchindex sample --save-trajectory` wrote.

    Parameters
    ----------
    path : str or Path
        The folder trajectory.zarr.
    number : int
        Number of the sample in its run.
    image : Tensor, shape (1, C, H, W)
        The sample.
    seed, label : int, optional
        Of the run.

    Returns
    -------
    Steps

    Raises
    ------
    SourceNotFoundError
        When there is no such folder.
    InputError
        When the folder is no trajectory of this sample.

    Examples
    --------
    >>> import tempfile
    >>> from patchindex.sampling.trajectory import TrajectoryFile
    >>> images = np.random.default_rng(0).integers(0, 256, (10, 8, 8), np.uint8)
    >>> drawn = sample(ScoreMachine(images, machine="LS", locality=3), n=2, steps=5, trajectory=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = folder + "/trajectory.zarr"
    ...     TrajectoryFile(path).write(drawn.trajectory, 0, 2)
    ...     read_steps(path, 1, drawn.images[1:2]).t.tolist()
    [0.8, 0.6, 0.4, 0.2]
    """
    check_least(number=(number, 0))
    found = TrajectoryFile(path).read([number])
    if found.x.shape[1:] != tuple(image.shape):
        raise InputError(
            f"has an image of shape {found.x.shape[1:]}, the sample is of {tuple(image.shape)}",
            where=path,
            remedy="use the trajectory of these samples",
        )
    return Steps.of(found, image.cpu(), number=number, seed=seed, label=label)


def explain_steps(
    machine: ScoreMachine,
    steps: Steps,
    top: int = 8,
    *,
    last_only: bool = False,
    progress: Progress | None = None,
) -> list[Attributions | None]:
    """Return the patches behind all pixels at each step, None at steps that are left out.

    Parameters
    ----------
    machine : ScoreMachine
        Its estimator decides how the patches are found.
    steps : Steps
    top : int
        Patches per pixel.
    last_only : bool
        Explain the last step only.
    progress : Progress, optional
        Called as `progress(stage, done, total)`.

    Returns
    -------
    list of Attributions or None

    Raises
    ------
    InputError
        As for `ScoreMachine.explain`.

    Examples
    --------
    >>> images = np.random.default_rng(0).integers(0, 256, (10, 8, 8), np.uint8)
    >>> m = ScoreMachine(images, machine="LS", locality=3)
    >>> found = explain_steps(m, redraw(m, torch.randn(1, 1, 8, 8), steps=3), last_only=True)
    >>> found[0] is None, found[1].weight.shape
    (True, (64, 8))
    """
    progress = as_progress(progress)
    wanted = [len(steps) - 1] if last_only else list(range(len(steps)))
    found: list[Attributions | None] = [None] * len(steps)
    for done, i in enumerate(wanted):
        found[i] = machine.explain(
            steps.x[i : i + 1],
            float(steps.t[i]),
            k=int(steps.k[i]) or None,
            label=steps.label,
            top=top,
            seed=steps.seed,
            image_ids=[steps.number],
            progress=part_of(progress, "patches", done / len(wanted), (done + 1) / len(wanted)),
        )
    return found
