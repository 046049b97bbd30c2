"""The steps of one sample, read from a trajectory or drawn again, and the patches behind each step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchindex.denoisers import Attributions, ScoreMachine
from patchindex.errors import InputError, PatchIndexWarning, SourceNotFoundError, warn
from patchindex.runtime import Progress, no_progress, part_of
from patchindex.sampling import sample

__all__ = ["Steps", "explain_steps", "read_steps", "redraw"]

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

    def __len__(self) -> int:
        return len(self.t)


def redraw(
    machine: ScoreMachine,
    x_T: Tensor,
    *,
    steps: int = 20,
    sampler: str = "ddim",
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
    x_T : Tensor, shape (C, H, W)
        The noise that the sample started from.
    steps, sampler, seed, label
        Settings of the run, as for `sample`.
    number : int
        Number of the sample in its run.
    expected : Tensor, shape (C, H, W), optional
        The sample. A warning says if the new image differs.
    progress : Progress, optional

    Raises
    ------
    InputError
        As for `sample`.

    Examples
    --------
    >>> images = np.random.default_rng(0).integers(0, 256, (10, 8, 8), np.uint8)
    >>> m = ScoreMachine(images, machine="LS", locality=3)
    >>> found = redraw(m, torch.randn(1, 8, 8), steps=5)
    >>> found.x.shape, found.t.tolist()
    (torch.Size([4, 1, 8, 8]), [0.8, 0.6, 0.4, 0.2])
    """
    before, kept = [x_T[None].float().cpu()], []

    def keep(step: dict[str, Any]) -> None:
        before.append(step["x"].cpu())
        kept.append((step["t"], step["estimate"]))

    drawn = sample(
        machine,
        None,
        steps,
        sampler,
        seed,
        x_T[None],
        keep,
        label=label,
        first=number,
        progress=progress,
    )
    image = drawn.images[0].cpu()
    if expected is not None and float((image - expected.cpu()).abs().max()) > SAME:
        warn(PatchIndexWarning(
            "the sample, drawn again, differs: another version or estimator made it",
            remedy="save the trajectory with the samples",
        ))  # fmt: skip
        image = expected.cpu()
    return Steps(
        t=np.array([t for t, _ in kept]),
        k=np.array([machine.scale_at(t) or 0 for t, _ in kept]),
        x=torch.cat(before[:-1]),
        mean=torch.cat([e.mean.cpu() for _, e in kept]),
        **{
            name: np.concatenate([getattr(e, name).cpu().numpy() for _, e in kept])
            for name in ("stderr", "ess", "captured_mass")
        },
        image=image,
        number=number,
        seed=seed,
        label=machine.label if label is None else label,
    )


def read_steps(
    path: str | Path, number: int, image: Tensor, *, seed: int = 0, label: int | None = None
) -> Steps:
    """Read the steps of one sample from a trajectory that `patchindex sample --save-trajectory` wrote.

    Raises
    ------
    SourceNotFoundError
        When there is no such file.
    InputError
        When the file is no trajectory of this sample.
    """
    import zarr

    if not Path(path).exists():
        raise SourceNotFoundError("no such trajectory", where=path, remedy="save it with the samples")
    try:
        group = zarr.open_group(str(path), mode="r")
        t, k = (np.asarray(group[name]) for name in ("t", "k"))
        x, mean, *maps = (np.asarray(group[name][:, number]) for name in ARRAYS)  # type: ignore[index]
    except (KeyError, IndexError, ValueError, TypeError, OSError) as error:
        raise InputError(
            f"is no trajectory of sample {number} ({error})", where=path, remedy="save the trajectory again"
        ) from error
    size = tuple(image.shape)
    if not (x.shape == mean.shape == (len(t), *size) and all(m.shape == (len(t), *size[1:]) for m in maps)):
        raise InputError(
            f"has arrays of shape {x.shape} for a sample of shape {size}",
            where=path,
            remedy="use the trajectory of these samples",
        )
    stderr, ess, captured = (np.asarray(m, np.float32) for m in maps)
    return Steps(
        t.astype(np.float64),
        k.astype(np.int64),
        torch.from_numpy(x.astype(np.float32)),
        torch.from_numpy(mean.astype(np.float32)),
        stderr,
        ess,
        captured,
        image.cpu(),
        number,
        seed,
        label,
    )


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
    """
    progress = progress or no_progress
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
