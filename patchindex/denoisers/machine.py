"""`ScoreMachine`: the score of an analytic diffusion model, as a function of a noisy image and its time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard, Unpack

import torch
from torch import Tensor

from patchindex.build import parse_memory
from patchindex.errors import InputError
from patchindex.estimators import Estimate, EstimatorOptions, ScoreContext, make_estimator
from patchindex.exact import ScoreRequest, TrajectoryCache, scan
from patchindex.exact.request import WORKING_MEMORY
from patchindex.geometry import Geometry
from patchindex.images import ImagesLike, LabelsLike
from patchindex.images.by_label import TrainingImages
from patchindex.index import PatchIndex, open_index
from patchindex.index.layout import read_attributes
from patchindex.runtime import Progress, check_threads, no_progress, part_of, resolve_device
from patchindex.runtime import threads as use_threads
from patchindex.schedules import LocalitySchedule, NoiseSchedule, noise_schedule
from patchindex.softmax import SoftmaxState
from patchindex.store.remote import Remote, is_url

__all__ = ["LARGEST_X", "LEAST_BETA", "MachineOptions", "ScoreMachine", "is_store"]

# float32 must order the squared distances of patches. Squares of differences from |x| = 100, summed over 3
# channels of a 15 x 15 window, are 7e6 and rounded by about one; one grey level in one pixel moves them by
# 2 |x| / 127.5 = 1.6. Noisy images lie within about 6.
LARGEST_X = 100.0
LEAST_BETA = 1e-20  # smaller noise variances make float32 logits overflow

Locality = str | int | Sequence[int] | LocalitySchedule


class Shards(Protocol):
    """Training images on the workers of a cluster: `patchindex.cluster.ImageShards`."""

    def check(self, training: TrainingImages) -> None:
        """Refuse training images that differ from the shards."""

    scan: Callable[[ScoreRequest], SoftmaxState]


class MachineOptions(EstimatorOptions, total=False):
    """Options of `ScoreMachine` for a store, and of its estimator."""

    estimator: str | None
    noise: str | NoiseSchedule
    locality: Locality | None
    label: int | None
    device: str | torch.device | None
    threads: int | None
    memory: int | str | None
    dtype: torch.dtype


class ScoreMachine:
    """The score machine of a set of training images.

        mu(p) = sum_j softmax_j(-|W_k(x, p) - a P_j|^2 / (2 beta)) c_j,    score = (a mu - x) / beta

    over the training patches P_j, with centres c_j, that pixel p is compared with; a = sqrt(1 - beta).
    (Kamb & Ganguli, arXiv 2412.20292.)

    Parameters
    ----------
    source : PatchIndex, or anything `open_images` takes
        A patch index (or its path), or raw images (exact scores only).
    labels : array of int or path, optional
        Labels of raw images, shape (N,). An index has its own.
    machine : str, optional
        `"IS"`, `"LS"`, `"ELS"` (default for raw images) or `"bbELS"`. An index has its own.
    train_windows : str, optional
        `"valid"` (default) or `"wrapped"`, for ELS. An index has its own.
    estimator : str, optional
        `"auto"`, `"topk"` or `"exact"`. The default for an index with scales is `"auto"` on the CPU and
        `"topk"` on a GPU, else `"exact"`.
    noise : str or callable
        Noise schedule: a name, or a function from t to beta.
    locality : str or sequence of int, optional
        Locality schedule: a preset's name, or scales by time. An index may have its own. Without a schedule
        every call needs `k`; IS needs neither.
    label : int, optional
        Compare with the training images of this label only.
    device : str or torch.device, optional
        Where scores are computed; `"cpu"` by default.
    threads : int, optional
        CPU threads; by default as many as torch uses.
    memory : int or str, optional
        Bytes for temporary arrays, or a size such as `"1G"`; 256 MiB by default.
    dtype : torch.dtype
        `torch.float32`, or `torch.float64` for exact studies.
    shards : patchindex.cluster.ImageShards, optional
        The same images on the workers of a cluster, which then compute the exact scores.
    **options
        Of the estimator: `tolerance`, `probes` and `candidates` for `"auto"`; `candidates`, `probes` and
        `quality` for `"topk"`.

    Raises
    ------
    InputError
        When a setting is unknown or does not fit the images or the index.

    Examples
    --------
    >>> import numpy as np, torch
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    >>> m = ScoreMachine(images, machine="ELS", locality=[3, 3, 5, 7])
    >>> x = torch.randn(2, 3, 16, 16)
    >>> e = m.posterior_mean(x, 0.5)
    >>> e.mean.shape, e.patches_evaluated == 2 * 16 * 16 * 20 * 12 * 12
    (torch.Size([2, 3, 16, 16]), True)
    >>> m(x, 0.5).shape
    torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        source: PatchIndex | ImagesLike,
        labels: LabelsLike | None = None,
        *,
        machine: str | None = None,
        train_windows: str | None = None,
        estimator: str | None = None,
        noise: str | NoiseSchedule = "cosine",
        locality: Locality | None = None,
        label: int | None = None,
        device: str | torch.device | None = None,
        threads: int | None = None,
        memory: int | str | None = None,
        dtype: torch.dtype = torch.float32,
        shards: Shards | None = None,
        **options: Unpack[EstimatorOptions],
    ) -> None:
        self.device = resolve_device(device)
        check_threads(threads)
        if dtype not in (torch.float32, torch.float64):
            raise InputError(f"{dtype} is too coarse", parameter="dtype", remedy="use float32 or float64")
        if is_store(source):
            source = open_index(source, device=device)
        self.index = source if isinstance(source, PatchIndex) else None
        if isinstance(source, PatchIndex):
            _refuse_other_settings(source, labels, machine, train_windows)
            self.machine, self.train_windows = source.machine, source.train_windows
            self.training, locality = source.training, source.locality if locality is None else locality
        else:
            self.machine, self.train_windows = machine or "ELS", train_windows or "valid"
            self.training = TrainingImages(source, labels)
        if shards is not None:
            shards.check(self.training)
        drawing = "auto" if self.device.type == "cpu" else "topk"
        self.estimator = estimator or (drawing if self.index is not None and self.index.scales else "exact")
        if self.estimator != "exact" and dtype != torch.float32:
            raise InputError(
                f"{self.estimator} computes in float32 only",
                parameter="dtype",
                remedy="leave it out, or use 'exact'",
            )
        self._context = ScoreContext(self.index, self.device, scan if shards is None else shards.scan)
        self._estimate = make_estimator(self.estimator, self._context, **options)
        self.noise = noise_schedule(noise)
        self.locality = None if locality is None else LocalitySchedule.of(locality)
        self.label, self._options = label, dict[str, Any](options)
        self._dtype, self._threads = dtype, threads
        self._memory = WORKING_MEMORY if memory is None else parse_memory(memory)
        self.training.range_of(label)  # refuses an unknown label now, not at the first call
        for k in self.locality.distinct if self.locality else (1,):
            self._geometry(k)
            if self.locality is not None and self.index is not None and self.estimator != "exact":
                self.index.scale(k)

    def _geometry(self, k: int | None) -> Geometry:
        return Geometry.of(self.machine, k, self.training.size, self.train_windows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return (self.training.channels, *self.training.size)

    def exact(self) -> ScoreMachine:
        """Return the same machine with the estimator `"exact"`."""
        other = copy.copy(self)
        other.estimator, other._options = "exact", {}
        other._estimate = make_estimator("exact", self._context)
        return other

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the machine, as plain data."""
        schedule = self.locality
        return {
            "machine": self.machine,
            "train_windows": self.train_windows,
            "estimator": self.estimator,
            "options": {name: _plain(value) for name, value in self._options.items()},
            "noise": getattr(self.noise, "__name__", str(self.noise)),
            "locality": schedule and {"name": schedule.name, "scales": list(schedule.scales)},
            "device": str(self.device),
        }

    def posterior_mean(
        self,
        x: Tensor,
        t: float | Tensor,
        k: int | None = None,
        label: int | None = None,
        *,
        seed: int = 0,
        image_ids: Sequence[int] | None = None,
        progress: Progress | None = None,
        cache: TrajectoryCache | None = None,
    ) -> Estimate:
        """Estimate `E[x_0 | x_t = x]` under the machine.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W)
            Noisy images, each value within `LARGEST_X` = 100 of 0: beyond, float32 cannot order logits.
        t : float or Tensor of shape (B,)
            Times in (0, 1).
        k : int, optional
            Locality scale, in place of the schedule's.
        label : int, optional
            In place of the machine's own label.
        seed : int
            Seed of estimators that draw random numbers.
        image_ids : sequence of B int, optional
            Numbers of the images, by default 0, 1, ...: an image with the same number and seed gets the same
            random draws in any batch.
        progress : Progress, optional
            Called as `progress(stage, done, total)`.
        cache : dict, optional
            Pass one dict, empty at first, to all steps of a trajectory, whose images keep their numbers:
            `"auto"` keeps there what it has retrieved, and retrieves less at the next step.

        Returns
        -------
        Estimate
            float32, on the machine's device.

        Raises
        ------
        InputError
            When x has a wrong shape, is not finite or too large; when t is outside (0, 1) or its noise
            variance is below `LEAST_BETA`; when there is no k, an unknown label, or not B `image_ids`.
        """
        x = self.check_x(x)
        times = self._check_t(t, len(x))
        label = self.label if label is None else label
        self.training.range_of(label)
        if image_ids is not None and len(image_ids) != len(x):
            raise InputError(
                f"there are {len(image_ids)} numbers for {len(x)} images",
                parameter="image_ids",
                remedy="give one number for each image",
            )
        if self.index is not None:
            self.index.check_images(*self.training.range_of(label))
        progress = progress or no_progress
        distinct = list(dict.fromkeys(times))
        parts, rows = [], []
        with use_threads(self._threads):
            for i, time in enumerate(distinct):
                mine = [row for row, its_time in enumerate(times) if its_time == time]
                request = ScoreRequest(
                    self.training,
                    self._geometry(self.scale_at(time, k)),
                    x[mine],
                    self._beta(time),
                    label=label,
                    memory=self._memory,
                    dtype=self._dtype,
                    progress=part_of(progress, "posterior mean", i / len(distinct), (i + 1) / len(distinct)),
                    seed=seed,
                    image_ids=[image_ids[row] for row in mine] if image_ids is not None else mine,
                    cache=cache,
                )
                parts.append(self._estimate(request))
                rows += mine
        joined = Estimate.cat(parts)
        return joined[torch.argsort(torch.tensor(rows, device=self.device))]

    def score(self, x: Tensor, t: float | Tensor, k: int | None = None, label: int | None = None) -> Tensor:
        """Return `(a mu - x) / beta`, shape (B, C, H, W), with mu the `posterior_mean`."""
        return self.score_of(self.posterior_mean(x, t, k, label).mean, x, t)

    __call__ = score

    def score_of(self, mean: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        """Return the score that goes with a posterior mean at (x, t)."""
        x = self.check_x(x)
        beta = torch.tensor([self._beta(time) for time in self._check_t(t, len(x))], dtype=torch.float64)
        beta = beta.to(x.device)[:, None, None, None]
        return (((1 - beta).sqrt() * mean - x) / beta).float()

    def scale_at(self, t: float, k: int | None = None) -> int | None:
        """Return the locality scale at time t: k if it is given, else the schedule's; None for IS.

        Raises
        ------
        InputError
            When there is neither k nor a schedule.
        """
        if k is not None or self.machine == "IS":
            return k
        if self.locality is None:
            raise InputError(
                "there is none", parameter="locality", remedy="give a locality schedule, or k with the call"
            )
        return self.locality.k(t)

    def _beta(self, t: float) -> float:
        beta = self.noise(t)
        if not 0 < beta < 1:
            raise InputError(
                f"gives beta = {beta} at t = {t}", parameter="noise", remedy="give beta in (0, 1)"
            )
        if beta < LEAST_BETA:
            raise InputError(
                f"beta = {beta:.1e} at t = {t:.1e} is below {LEAST_BETA:.0e}",
                parameter="t",
                remedy="use a larger t",
            )
        return beta

    def check_x(self, x: Tensor, name: str = "x") -> Tensor:
        """Return noisy images on the machine's device, in float32; refuse those that no call accepts."""
        if not isinstance(x, Tensor) or x.dim() != 4 or tuple(x.shape[1:]) != self.shape or len(x) == 0:
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            expected = "(B, {}, {}, {})".format(*self.shape)
            raise InputError(
                f"must be a tensor of shape {expected}, got {found}", parameter=name, remedy="reshape it"
            )
        if not x.is_floating_point() or not bool(torch.isfinite(x).all()):
            raise InputError("must be finite floats", parameter=name, remedy="check for NaN and infinity")
        x = x.detach()
        largest = float(x.abs().max())
        if largest > LARGEST_X:
            raise InputError(
                f"values must lie in [-{LARGEST_X:g}, {LARGEST_X:g}], got {largest:.3g}",
                parameter=name,
                remedy="scale it as x_t = sqrt(1 - beta) x_0 + sqrt(beta) eps",
            )
        return x.to(self.device, torch.float32)

    @staticmethod
    def _check_t(t: float | Tensor, batch: int) -> list[float]:
        try:
            times = torch.as_tensor(t, dtype=torch.float64).flatten().tolist()
        except (TypeError, ValueError, RuntimeError):
            raise InputError(
                f"is not a time: {t!r}", parameter="t", remedy="give a float, or one for each image"
            ) from None
        if len(times) == 1:
            times = times * batch
        if len(times) != batch:
            raise InputError(
                f"there are {len(times)} times for {batch} images",
                parameter="t",
                remedy="give one time, or one for each image",
            )
        for time in times:
            if not 0 < time < 1:
                raise InputError(
                    f"must lie in (0, 1), got {time}", parameter="t", remedy="t = 0 is data, t = 1 is noise"
                )
        return times


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _refuse_other_settings(
    index: PatchIndex, labels: LabelsLike | None, machine: str | None, train_windows: str | None
) -> None:
    """Refuse settings that differ from the settings of the store."""
    own = {"labels": None, "machine": index.machine, "train_windows": index.train_windows}
    given = {"labels": labels, "machine": machine, "train_windows": train_windows}
    for name, value in given.items():
        if value is not None and (own[name] is None or value != own[name]):
            raise InputError(
                "is fixed in the store" + ("" if own[name] is None else f" as {own[name]!r}"),
                parameter=name,
                remedy="leave it out, or give the images themselves",
            )


def is_store(source: Any) -> TypeGuard[str | Path]:
    """Return whether a source is the path or URL of a store, rather than of images."""
    if is_url(source):
        return Remote(source).is_store()
    return isinstance(source, str | Path) and read_attributes(Path(source)) is not None
