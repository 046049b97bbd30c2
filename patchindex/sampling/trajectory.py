"""`Trajectory`: noisy images and posterior means at each step of a sample, in memory or in a zarr group."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.storage import LocalStore

from patchindex.checks import is_whole
from patchindex.errors import InputError, OutputExistsError, SourceNotFoundError
from patchindex.estimators import Estimate
from patchindex.images.zarr_data import CheckedStore, check_array, checked_store

__all__ = ["Step", "Trajectory", "TrajectoryFile", "values_per_step"]

OF_STEPS = ("t", "k")
OF_IMAGES = ("x", "mean")
OF_PIXELS = ("stderr", "ess", "captured_mass")
FORMAT = "patchindex trajectory 1"


@dataclass(frozen=True)
class Step:
    """One step of a `Trajectory`: the first evaluation of the posterior mean, for n images.

    Attributes
    ----------
    t : float
        Time, in (0, 1).
    k : int or None
        Locality scale; None for a denoiser without one.
    x : Tensor, shape (n, C, H, W), float32
        Noisy images before the step.
    mean : Tensor, shape (n, C, H, W), float32
        Posterior means; a score machine has posterior means in [-1, 1].
    stderr, ess, captured_mass : Tensor, shape (n, H, W), float32
        As in `Estimate`.
    """

    t: float
    k: int | None
    x: Tensor
    mean: Tensor
    stderr: Tensor
    ess: Tensor
    captured_mass: Tensor


@dataclass(frozen=True)
class Trajectory:
    """The first evaluation of the posterior mean in each of S steps, for n images.

    Attributes
    ----------
    t : numpy.ndarray, shape (S,), float64
        Times, descending.
    k : numpy.ndarray, shape (S,), int64
        Locality scales; 0 for a denoiser without them.
    x : numpy.ndarray, shape (S, n, C, H, W), float32
        Noisy images before the step; x[0] is the noise at the start.
    mean : numpy.ndarray, shape (S, n, C, H, W), float32
        Posterior means; a score machine has posterior means in [-1, 1].
    stderr, ess, captured_mass : numpy.ndarray, shape (S, n, H, W), float32
        As in `Estimate`.

    Examples
    --------
    >>> from patchindex.denoisers import ScoreMachine
    >>> from patchindex.sampling import sample
    >>> images = np.random.default_rng(0).integers(0, 256, (10, 8, 8), np.uint8)
    >>> m = ScoreMachine(images, machine="LS", locality=3)
    >>> path = sample(m, n=2, steps=5, trajectory=True).trajectory
    >>> path.x.shape, path.t.tolist()
    ((4, 2, 1, 8, 8), [0.8, 0.6, 0.4, 0.2])
    >>> last = path.step(-1)
    >>> last.t, last.k, last.x.shape
    (0.2, 3, torch.Size([2, 1, 8, 8]))
    >>> m.explain(last.x, last.t, [(4, 4)])
    Attributions(2 pixels, 16 patches each, exact)
    """

    t: np.ndarray
    k: np.ndarray
    x: np.ndarray
    mean: np.ndarray
    stderr: np.ndarray
    ess: np.ndarray
    captured_mass: np.ndarray

    @classmethod
    def of(cls, steps: Sequence[tuple[float, int | None, Tensor, Estimate]]) -> Trajectory:
        """Return the trajectory of a batch from t, k, noisy images and estimate of each step."""
        estimates = [estimate for *_, estimate in steps]
        return cls(
            t=np.array([t for t, *_ in steps], np.float64),
            k=np.array([k or 0 for _, k, *_ in steps], np.int64),
            x=np.stack([x.float().cpu().numpy() for *_, x, _ in steps]),
            **{
                name: np.stack([getattr(each, name).cpu().numpy() for each in estimates])
                for name in ("mean", *OF_PIXELS)
            },
        )

    @classmethod
    def cat(cls, parts: Sequence[Trajectory]) -> Trajectory:
        """Join the trajectories of batches, which have the same steps."""
        images = (*OF_IMAGES, *OF_PIXELS)
        joined = {name: np.concatenate([getattr(part, name) for part in parts], 1) for name in images}
        return cls(parts[0].t, parts[0].k, **joined)

    def __len__(self) -> int:
        return len(self.t)

    def step(self, i: int) -> Step:
        """Return one step: 0 is the noisiest, -1 the last.

        Raises
        ------
        InputError
            When there is no such step.
        """
        if not is_whole(i) or not -len(self) <= i < len(self):
            raise InputError(
                f"there is no step {i!r}",
                parameter="i",
                remedy=f"use 0 to {len(self) - 1}, or -1 for the last",
            )
        arrays = {name: torch.from_numpy(getattr(self, name)[i]) for name in (*OF_IMAGES, *OF_PIXELS)}
        return Step(float(self.t[i]), int(self.k[i]) or None, **arrays)


def values_per_step(shape: tuple[int, int, int]) -> int:
    """Return the numbers that a trajectory has per image and step."""
    channels, height, width = shape
    return height * width * (len(OF_IMAGES) * channels + len(OF_PIXELS))


class TrajectoryFile:
    """A trajectory in a zarr group of format 3, written batch by batch and read image by image.

    The arrays are those of `Trajectory`; a chunk has all steps of an image.

    Parameters
    ----------
    path : str or Path

    Examples
    --------
    >>> import tempfile
    >>> zeros = np.zeros((2, 3, 1, 4, 4), np.float32)
    >>> part = Trajectory(np.array([0.9, 0.5]), np.array([5, 3]), zeros, zeros, *[zeros[:, :, 0]] * 3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = TrajectoryFile(f"{folder}/trajectory.zarr")
    ...     file.write(part, first=0, n=3)
    ...     file.read([2]).x.shape
    (2, 1, 1, 4, 4)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, part: Trajectory, first: int, n: int) -> None:
        """Write the images `first`, `first + 1`, ... of n; the first call makes the group.

        Raises
        ------
        InputError
            When the group has other steps, another number of images or another shape than this part, or n
            images do not hold the part.
        OutputExistsError
            When the path is a file, or a folder with something else than a trajectory.
        """
        count = part.x.shape[1]
        if not 0 <= first <= n - count:
            raise InputError(
                f"{count} images from image {first} on do not fit into {n}",
                parameter="first",
                remedy="give the number of the part's first image, and the number of all images",
            )
        group = self._group()
        if not group.attrs.get("complete", True):  # a kill may have left some arrays
            for name in OF_STEPS:
                group.create_array(name, data=getattr(part, name), overwrite=True)
            for name in (*OF_IMAGES, *OF_PIXELS):
                steps, _, *rest = getattr(part, name).shape
                group.create_array(
                    name, shape=(steps, n, *rest), chunks=(steps, 1, *rest),
                    dtype="f4", fill_value=np.nan, overwrite=True,
                )  # fmt: skip
            group.attrs["complete"] = True
        self._check_fits(group, part, n)
        for name in (*OF_PIXELS, *reversed(OF_IMAGES)):  # x last: it says that an image is drawn
            array: Any = group[name]
            array[:, first : first + count] = getattr(part, name)

    def _group(self) -> zarr.Group:
        """Return the group, a new one if there is nothing at the path."""
        if self.path.is_file():
            raise OutputExistsError("is a file", where=self.path, remedy="write to another path")
        store = LocalStore(self.path)
        if not self.path.exists() or all(file.name.endswith(".partial") for file in self.path.iterdir()):
            return zarr.create_group(store, zarr_format=3, attributes={"format": FORMAT, "complete": False})
        try:
            group = zarr.open_group(store, mode="r+", zarr_format=3)
            is_trajectory = group.attrs.get("format") == FORMAT
        except (zarr.errors.GroupNotFoundError, ValueError):
            is_trajectory = False
        if not is_trajectory:
            raise OutputExistsError("is no trajectory", where=self.path, remedy="write to another path")
        return group

    def _check_fits(self, group: zarr.Group, part: Trajectory, n: int) -> None:
        """Refuse a part of another trajectory than the group has."""
        for each in fields(Trajectory):
            held: Any = group.get(each.name)
            given = getattr(part, each.name)
            shape = given.shape if each.name in OF_STEPS else (len(given), n, *given.shape[2:])
            fits = isinstance(held, zarr.Array) and held.shape == shape
            if fits and each.name in OF_STEPS:
                fits = np.array_equal(np.asarray(held[:]), given)
            if not fits:
                raise InputError(
                    f"has another trajectory: its array {each.name} differs",
                    where=self.path,
                    remedy="write to another path, or remove the folder",
                )

    def read(self, images: Sequence[int] | None = None) -> Trajectory:
        """Return the trajectory of some images, by default of all.

        Raises
        ------
        SourceNotFoundError
            When there is no such folder.
        InputError
            When the folder is no trajectory, its arrays do not fit each other, or it has no such image, or
            the image is not drawn yet.
        """
        if not self.path.is_dir():
            raise SourceNotFoundError(
                "no such trajectory", where=self.path, remedy="draw with --save-trajectory"
            )
        store = checked_store(str(self.path))
        with self._reading("group"):
            found_format = zarr.open_group(store, mode="r", zarr_format=3).attrs.get("format")
        if found_format != FORMAT:
            raise self._refusal(f"has the format {found_format!r:.60}, not {FORMAT!r}")
        arrays = {each.name: self._array(store, each.name) for each in fields(Trajectory)}
        (steps, n, *shape) = arrays["x"].shape if arrays["x"].ndim == 5 else (0, 0)
        for name, array in arrays.items():
            whole = (steps, n, *shape)
            wanted = {**dict.fromkeys(OF_STEPS, whole[:1]), **dict.fromkeys(OF_IMAGES, whole)}
            if array.shape != wanted.get(name, (*whole[:2], *whole[3:])) or not steps or not n:
                raise self._refusal(f"has an array {name} of shape {array.shape}")
            if array.dtype.kind not in ("iu" if name == "k" else "f"):
                raise self._refusal(f"has an array {name} of type {array.dtype}")
        chosen = list(range(n)) if images is None else list(images)
        for image in chosen:
            if not 0 <= image < n:
                raise InputError(
                    f"has no image {image}; it has {n}", where=self.path, remedy=f"use 0 to {n - 1}"
                )
        found = {}
        for name, array in arrays.items():
            with self._reading(name):
                found[name] = array[:] if name in OF_STEPS else np.stack([array[:, i] for i in chosen], 1)
        drawn = np.isfinite(found["x"]).all(axis=(0, 2, 3, 4))
        if not drawn.all():
            number = chosen[int(drawn.argmin())]
            raise InputError(
                f"image {number} is not drawn yet", where=self.path, remedy="continue with sample --resume"
            )
        return Trajectory(**found)

    def _array(self, store: CheckedStore, name: str) -> Any:
        with self._reading(name):
            array = zarr.open_array(store, path=name, mode="r", zarr_format=3)
            check_array(array, store, self.path / name)
        return array

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Refuse an array for which zarr raises an error, which may be of any kind."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            raise self._refusal(f"has no array {name} that can be read ({type(error).__name__})") from error

    def _refusal(self, what: str) -> InputError:
        return InputError(what, where=self.path, remedy="draw again with --save-trajectory")
