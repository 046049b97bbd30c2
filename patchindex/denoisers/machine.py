"""`ScoreMachine`: the score of an analytic diffusion model, as a function of a noisy image and its time."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor

from patchindex.checks import check_least
from patchindex.denoisers.arguments import Label, image_numbers, times_of
from patchindex.denoisers.attribution import Attributions, check_pixels, check_top
from patchindex.denoisers.base import Call
from patchindex.denoisers.from_images import TrainingDenoiser
from patchindex.devices import check_dtype, enough_memory, resolve_devices
from patchindex.errors import InputError
from patchindex.estimators import Estimate, EstimatorOptions, ScoreContext, make_estimator
from patchindex.exact import DeviceShards, ScoreRequest, Shards, TrajectoryCache
from patchindex.geometry import Geometry
from patchindex.images import ImagesLike, LabelsLike
from patchindex.index import PatchIndex
from patchindex.runtime import Progress, as_progress, plain_state
from patchindex.runtime import threads as use_threads
from patchindex.schedules import LocalityLike, LocalitySchedule, NoiseSchedule

__all__ = ["MachineOptions", "ScoreMachine"]

log = logging.getLogger(__name__)


class MachineOptions(EstimatorOptions, total=False):
    """Options of `ScoreMachine` for a store, and of its estimator."""

    estimator: str | None
    noise: str | NoiseSchedule
    locality: LocalityLike | None
    label: Label | None
    device: str | torch.device | None
    threads: int | None
    memory: int | str | None
    dtype: torch.dtype


class ScoreMachine(TrainingDenoiser):
    """The score machine of a set of training images.

        mu(p) = sum_j softmax_j(-|W_k(x, p) - a P_j|^2 / (2 beta)) c_j,    score = (a mu - x) / beta

    over the training patches P_j, with centres c_j, that pixel p is compared with; a = sqrt(1 - beta).
    (Kamb & Ganguli, arXiv 2412.20292.)

    Parameters
    ----------
    source : PatchIndex, or anything `open_images` takes
        A patch index (or its path), or raw images (for `"auto"` and `"exact"`).
    labels : array of int or path, optional
        Labels of raw images, shape (N,). An index has its own.
    machine : str, optional
        `"IS"`, `"LS"`, `"ELS"` (default for raw images) or `"bbELS"`. An index has its own.
    train_windows : str, optional
        `"valid"` (default) or `"wrapped"`, for ELS. An index has its own.
    estimator : str, optional
        `"auto"`, `"topk"` or `"exact"`. The default for an index with scales is `"auto"`, else `"exact"`.
    noise : str or callable
        Noise schedule: a name, or a function from t to beta.
    locality : str, path, int, sequence of int, or LocalitySchedule, optional
        Locality schedule, as for `LocalitySchedule.of`: the name of a preset, a `.json` file, or scales by
        time of the noise schedule. An index may have its own. Without a schedule every call needs `k`; IS
        needs neither. A schedule that was calibrated on images of another size warns.
    label : int or str, optional
        Compare with the training images of this label only.
    device : str or torch.device, optional
        Where scores are computed: `"cpu"` (default), `"cuda"`, `"mps"` or `"xpu"`. `"cuda:0,cuda:1"` and
        `"cuda:all"` divide the training images among several GPUs, which compute exact scores together.
    threads : int, optional
        Number of CPU threads. The default is the number that torch uses.
    memory : int or str, optional
        Bytes for temporary arrays on each device, or a size such as `"1G"`. The default on the CPU is
        256 MiB. On a GPU the default, and the most, is 0.4 of the memory that is free when a call begins;
        a copy of the training images takes half of the free memory at most.
    dtype : torch.dtype
        `torch.float32`, or `torch.float64` for exact studies, on a device that has float64.
    shards : patchindex.cluster.ImageShards, optional
        The same images on the workers of a cluster. The workers compute the scores of `"exact"`. With an
        index, they also compute the steps at which `"auto"` compares every patch.
    **options
        Of the estimator: `tolerance`, `probes`, `candidates` and `engine` for `"auto"`; `candidates`,
        `probes` and `quality` for `"topk"`; `engine` for `"exact"`.

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
        locality: LocalityLike | None = None,
        label: Label | None = None,
        device: str | torch.device | None = None,
        threads: int | None = None,
        memory: int | str | None = None,
        dtype: torch.dtype = torch.float32,
        shards: Shards | None = None,
        **options: Unpack[EstimatorOptions],
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"{dtype!r} is neither torch.float32 nor torch.float64",
                parameter="dtype",
                remedy="use one of them",
            )
        super().__init__(
            source, labels, noise=noise, label=label, device=device, threads=threads, memory=memory
        )
        if self.index is not None:
            _refuse_other_settings(self.index, machine, train_windows)
            self.machine, self.train_windows = self.index.machine, self.index.train_windows
            locality = self.index.locality if locality is None else locality
        else:
            self.machine, self.train_windows = machine or "ELS", train_windows or "valid"
        self._devices = resolve_devices(device)
        for each in self._devices:
            check_dtype(each, dtype)
        self._context = self._where(shards)
        self.estimator = estimator or ("auto" if self.index is not None and self.index.scales else "exact")
        if self.estimator != "exact" and dtype != torch.float32:
            raise InputError(
                f"{self.estimator} computes in float32 only",
                parameter="dtype",
                remedy="leave it out, or use 'exact'",
            )
        self._score_pixels = make_estimator(self.estimator, self._context, **options)
        if shards is not None and not self._score_pixels.takes_shards:
            raise InputError(
                f"{self.estimator} gives no work to the workers of a cluster here",
                parameter="shards",
                remedy="leave it out, or use 'exact'",
            )
        self.locality = None if locality is None else LocalitySchedule.of(locality, self.noise)
        if self.locality is not None and self.machine != "IS":
            self.locality.check_image_size(self.training.size)
        self._options, self._dtype = dict[str, Any](options), dtype
        for k in self.locality.distinct if self.locality else (1,):
            self._geometry(k)
            if self.locality is not None and self.index is not None and self.searches_index:
                self.index.scale(k)
        log.info(
            "%s, estimator %s%s, scales %s, %d images of %d x %d, on %s",
            self.machine, self.estimator, self._options or "",
            ", ".join(map(str, self.locality.distinct)) if self.locality else "of each call",
            len(self.training), *self.training.size, self.device,
        )  # fmt: skip

    def _where(self, shards: Shards | None) -> ScoreContext:
        """Return the context whose scans run on the device, on several devices or on a cluster."""
        context = ScoreContext(self.index, self.device)
        if shards is None and len(self.devices) == 1:
            return context
        if shards is None:
            several = DeviceShards(self.devices)
            return replace(context, scan=several.scan, scan_parts=several.scan_parts)
        shards.check(self.training)
        if len(self.devices) > 1:
            raise InputError(
                "names several devices, and there are shards on a cluster",
                parameter="device",
                remedy="use one device",
            )
        return replace(context, scan=shards.scan)

    def _geometry(self, k: int | None) -> Geometry:
        return Geometry.of(self.machine, k, self.training.size, self.train_windows)

    @property
    def devices(self) -> Sequence[torch.device]:
        """The devices that compute exact scores; `device` is the first."""
        return self._devices

    @property
    def searches_index(self) -> bool:
        """True when the estimator searches an index, which must have the scales of the machine."""
        return self._score_pixels.searches

    def exact(self) -> ScoreMachine:
        """Return the same machine with the estimator `"exact"`, and with its engine if one is named."""
        other = copy.copy(self)
        other.estimator = "exact"
        other._options = {name: value for name, value in self._options.items() if name == "engine"}
        other._score_pixels = make_estimator("exact", self._context, **other._options)
        return other

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the machine, as plain data."""
        schedule = self.locality
        return {
            **super().settings,
            "device": ",".join(map(str, self.devices)),
            "machine": self.machine,
            "train_windows": self.train_windows,
            "estimator": self.estimator,
            "options": {name: _plain(value) for name, value in self._options.items()},
            "locality": schedule and schedule.as_dict(),
        }

    def _own_settings(self) -> dict[str, Any]:
        scales = None if self.locality is None else list(self.locality.distinct)
        found = {"machine": self.machine, "estimator": self.estimator, "scales": scales}
        return {name: value for name, value in found.items() if value is not None} | self._options

    def posterior_mean(
        self,
        x: Tensor,
        t: float | Tensor,
        k: int | None = None,
        label: Label | None = None,
        *,
        seed: int = 0,
        image_ids: Sequence[int] | None = None,
        progress: Progress | None = None,
        cache: TrajectoryCache | None = None,
    ) -> Estimate:
        """Estimate `E[x_0 | x_t = x]` under the machine.

        Parameters
        ----------
        k : int, optional
            Locality scale, in place of the schedule's.
        x, t, label, seed, image_ids, progress, cache
            As for `Denoiser.posterior_mean`. `"auto"` keeps in the cache the patches that it has retrieved,
            and retrieves fewer patches at the next step.

        Returns
        -------
        Estimate
            float32, on the machine's device.

        Raises
        ------
        InputError
            As for `Denoiser.posterior_mean`, and when there is no k.
        """
        return self._posterior_mean(x, t, label, k, seed, image_ids, progress, cache)

    @plain_state()
    def explain(
        self,
        x: Tensor,
        t: float,
        pixels: Sequence[tuple[int, int]] | None = None,
        *,
        k: int | None = None,
        label: Label | None = None,
        top: int = 16,
        seed: int = 0,
        image_ids: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Attributions:
        """Name the training patches behind pixels of noisy images, the heaviest first.

            weight_j = softmax_j(-|W_k(x, p) - a P_j|^2 / (2 beta))

        over all training patches P_j that pixel p is compared with. The posterior mean of p is
        `sum_j weight_j c_j`. The estimator of the machine decides the method: `exact` compares every patch;
        `auto` and `topk` retrieve patches from the index, and estimate the sum of all weights. For exact
        weights, call `machine.exact().explain(...)`.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W)
            Noisy images.
        t : float
            Time in (0, 1).
        pixels : sequence of (y, x), optional
            Pixels of each noisy image; all pixels in raster order by default.
        k : int, optional
            Locality scale, in place of the schedule's.
        top : int
            Patches per pixel; where a pixel is compared with fewer, the arrays end with places of no patch.
        label, seed, image_ids, progress
            As for `posterior_mean`.

        Returns
        -------
        Attributions
            A sequence with one `Attribution` per image and pixel: all pixels of image 0, then of image 1, ...

        Raises
        ------
        InputError
            As for `posterior_mean`; when a pixel is outside the image; or when the result would take more
            memory than the process may use.

        Examples
        --------
        >>> import numpy as np
        >>> images = np.random.default_rng(0).integers(0, 256, (20, 16, 16), np.uint8)
        >>> m = ScoreMachine(images, machine="ELS", locality=[3, 3, 5, 7])
        >>> found = m.explain(torch.randn(1, 1, 16, 16), 0.3, [(8, 3), (0, 0)])
        >>> len(found), found[0].pixel, found[0].image.shape, found[0].method
        (2, (8, 3), (16,), 'exact')
        >>> bool(abs(found[0].weight.sum() + found[0].rest - 1) < 1e-9)
        True
        """
        x = self.check_x(x)
        check_least(seed=(seed, 0))
        (time,) = times_of(t, 1)
        number = self.label if label is None else self.number_of(label)
        self.check_label(number)
        self._check_images(number)
        size = self.training.size
        chosen = check_pixels(pixels, size)
        check_top(top, len(x) * len(chosen))
        numbers = torch.from_numpy(chosen[:, 0] * size[1] + chosen[:, 1]).to(x.device)
        ids = image_numbers(image_ids, len(x))
        call = Call(time, number, ids, int(seed), as_progress(progress), k=k)
        request = replace(self._request(x, self._beta(time), call), pixels=[numbers] * len(x))
        with use_threads(self._threads), enough_memory(self.device, *self._if_out_of_memory):
            found = self._score_pixels.heaviest(request, min(top, request.most_patches))
        return Attributions.of(found.padded(top), chosen, x, time, self.scale_at(time, k), self.training)

    def _estimate(self, x: Tensor, beta: float, call: Call) -> Estimate:
        return self._score_pixels(self._request(x, beta, call))

    def _request(self, x: Tensor, beta: float, call: Call) -> ScoreRequest:
        return ScoreRequest(
            self.training,
            self._geometry(self.scale_at(call.t, call.k)),
            x,
            beta,
            label=call.label,
            memory=self._memory,
            dtype=self._dtype,
            progress=call.progress,
            seed=call.seed,
            image_ids=call.image_ids,
            cache=call.cache,
        )

    def score(self, x: Tensor, t: float | Tensor, k: int | None = None, label: Label | None = None) -> Tensor:
        """Return `(a mu - x) / beta`, shape (B, C, H, W), with mu the `posterior_mean`."""
        return self.score_of(self.posterior_mean(x, t, k, label).mean, x, t)

    def scale_at(self, t: float, k: int | None = None) -> int | None:
        """Return the locality scale at time t: k, or else the schedule's at beta(t); None for IS.

        Raises
        ------
        InputError
            When there is neither k nor a schedule.
        """
        if self.machine == "IS":
            return None
        if k is None and self.locality is None:
            raise InputError(
                "there is none", parameter="locality", remedy="give a locality schedule, or k with the call"
            )
        return k if k is not None or self.locality is None else self.locality.k(self._beta(t))


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _refuse_other_settings(index: PatchIndex, machine: str | None, train_windows: str | None) -> None:
    """Refuse settings that differ from the settings of the store."""
    for name, value, own in (
        ("machine", machine, index.machine),
        ("train_windows", train_windows, index.train_windows),
    ):
        if value is not None and value != own:
            raise InputError(
                f"is fixed in the store as {own!r}",
                parameter=name,
                remedy="leave it out, or give the images themselves",
            )
