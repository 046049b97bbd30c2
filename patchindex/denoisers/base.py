"""The contract of all denoisers: a noisy image and its time in, an `Estimate` of the clean image out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patchindex.checks import check_least
from patchindex.denoisers.arguments import Label, image_numbers, number_of_label, times_of
from patchindex.denoisers.conventions import Adaptable
from patchindex.denoisers.noising import Noising
from patchindex.devices import enough_memory, resolve_devices, to_float64
from patchindex.errors import InputError, Option, PatchIndexError
from patchindex.estimators import Estimate
from patchindex.exact import TrajectoryCache
from patchindex.notebook import html_table
from patchindex.runtime import Progress, as_progress, check_threads, no_progress, part_of, plain_state
from patchindex.runtime import threads as use_threads
from patchindex.schedules import NoiseSchedule, noise_schedule

__all__ = ["LARGEST_X", "LEAST_BETA", "Call", "Denoiser"]

# float32 must order the squared distances of patches. Squares of differences from |x| = 100, summed over 3
# channels of a 15 x 15 window, are 7e6 and rounded by about one; one grey level in one pixel moves them by
# 2 |x| / 127.5 = 1.6. Noisy images lie within about 6.
LARGEST_X = 100.0
LEAST_BETA = 1e-20  # smaller noise variances make float32 logits overflow
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Call:
    """The arguments of `posterior_mean`, for the images of a batch that share their time.

    Attributes
    ----------
    t : float
        Time in (0, 1).
    label : int or None
        The label of the call, or else of the denoiser. It is known.
    image_ids : sequence of int
        One number per image.
    seed, progress, cache, k
        As in `Denoiser.posterior_mean` and `ScoreMachine.posterior_mean`.
    """

    t: float
    label: int | None
    image_ids: Sequence[int]
    seed: int = 0
    progress: Progress = no_progress
    cache: TrajectoryCache | None = None
    k: int | None = None


class Denoiser(Adaptable, Noising, ABC):
    """An estimate of `E[x_0 | x_t]`, where `x_t = sqrt(1 - beta(t)) x_0 + sqrt(beta(t)) eps`.

    A subclass defines `_estimate`, and `check_label` if it has labels. This class checks the arguments of a
    call, and splits a batch whose images have different times.

    Parameters
    ----------
    shape : tuple of int
        Channels, height and width of the images.
    noise : str or callable
        Noise schedule: a name, or a function from t in (0, 1) to beta in (0, 1).
    label : int or str, optional
        Restrict all calls to images of this label, its number or name, unless a call has a label of its own.
    device : str or torch.device, optional
        Where posterior means are computed: `"cpu"` (default), `"cuda"`, `"mps"` or `"xpu"`. Of several
        devices, as in `"cuda:0,cuda:1"` or `"cuda:all"`, the first; exact scans of a `ScoreMachine` use all.
    threads : int, optional
        Number of CPU threads. The default is the number that torch uses.

    Attributes
    ----------
    shape, label, device
        As given.
    noise : callable
        The noise schedule, from t to beta.
    label_names : sequence of str or None
        Names of the labels 0, 1, ...

    Raises
    ------
    InputError
        When a setting is unknown or out of range.

    Examples
    --------
    A denoiser that predicts a black image:

    >>> class Black(Denoiser):
    ...     def _estimate(self, x, beta, call):
    ...         one = torch.ones_like(x[:, 0])
    ...         return Estimate(torch.full_like(x, -1.0), 0 * one, one, one, patches_evaluated=0)
    >>> black = Black((1, 8, 8))
    >>> black.posterior_mean(torch.randn(2, 1, 8, 8), 0.5).mean.shape
    torch.Size([2, 1, 8, 8])
    """

    label_names: Sequence[str] | None = None

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        noise: str | NoiseSchedule = "cosine",
        label: Label | None = None,
        device: str | torch.device | None = None,
        threads: int | None = None,
    ) -> None:
        check_threads(threads)
        self.device = resolve_devices(device)[0]
        self.noise = noise_schedule(noise)
        self._shape, self._threads = shape, threads
        self.label = self.number_of(label)
        self.check_label(self.label)

    @abstractmethod
    def _estimate(self, x: Tensor, beta: float, call: Call) -> Estimate:
        """Return the posterior mean of images that share their time.

        x is float32 (B, C, H, W), finite, on the denoiser's device; beta in (0, 1) is the noise variance.
        """

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return self._shape

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the denoiser, as plain data."""
        return {
            "denoiser": type(self).__name__,
            "noise": getattr(self.noise, "__name__", str(self.noise)),
            "device": str(self.device),
        }

    def __repr__(self) -> str:
        """Return the settings that were given, in one line."""
        size, *rest = self._described().items()
        named = ", ".join(f"{name}={value}" for name, value in rest)
        return f"{type(self).__name__}({size[1]}, {named})"

    def _repr_html_(self) -> str:
        """Return the settings that were given as a table, for a notebook."""
        return html_table(type(self).__name__, ("setting", "value"), self._described().items())

    def _described(self) -> dict[str, Any]:
        channels, height, width = self.shape
        label = {} if self.label is None else {"label": self.label}
        size = {"images": f"{channels} x {height} x {width}"}
        return size | {"noise": self.settings["noise"]} | label | self._own_settings()

    def _own_settings(self) -> dict[str, Any]:
        """Return the settings that `repr` has beside shape, noise and label."""
        return {}

    def check_label(self, label: int | None) -> None:
        """Refuse a label that the denoiser does not know; None, all labels, is accepted."""
        if label is not None:
            raise InputError("the denoiser has no labels", parameter="label", remedy="leave it out")

    def _check_images(self, label: int | None) -> None:
        """Compare the training images of a label with their checksums, where there are any."""

    def scale_at(self, t: float) -> int | None:
        """Return the locality scale at time t, None for a denoiser without a locality schedule."""
        return None

    def number_of(self, label: Label | None) -> int | None:
        """Return the number of a label, given its number or its name; None for all labels."""
        return number_of_label(label, self.label_names)

    def prepare(self, label: Label | None = None, progress: Progress | None = None) -> None:
        """Do the work that all calls share, such as the decomposition of a covariance.

        `sample` prepares a denoiser before its first step. Without `prepare`, the first call does the work.

        Parameters
        ----------
        label : int or str, optional
            In place of the denoiser's own label.
        progress : Progress, optional
            Called as `progress(stage, done, total)`.

        Raises
        ------
        InputError
            When the label is unknown.
        """
        number = self.label if label is None else self.number_of(label)
        self.check_label(number)
        with (
            plain_state(),
            use_threads(self._threads),
            enough_memory(self.device, *self._if_out_of_memory),
        ):
            self._prepare(number, as_progress(progress))

    def _prepare(self, label: int | None, progress: Progress) -> None:
        """Do the work that all calls with a label share, unless it is done; the label is known."""

    def posterior_mean(
        self,
        x: Tensor,
        t: float | Tensor,
        *,
        label: Label | None = None,
        seed: int = 0,
        image_ids: Sequence[int] | None = None,
        progress: Progress | None = None,
        cache: TrajectoryCache | None = None,
    ) -> Estimate:
        """Estimate `E[x_0 | x_t = x]`.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W)
            Noisy images, each value within `LARGEST_X` = 100 of 0: beyond, float32 cannot order logits.
        t : float or Tensor of shape (B,)
            Times in (0, 1).
        label : int or str, optional
            In place of the denoiser's own label.
        seed : int
            Seed of denoisers that draw random numbers.
        image_ids : sequence of B int, optional
            Numbers of the images, at least 0, by default 0, 1, ...: an image with the same number and seed
            gets the same random draws in any batch.
        progress : Progress, optional
            Called as `progress(stage, done, total)`.
        cache : dict, optional
            Pass one dict, empty at first, to all steps of a trajectory, whose images keep their numbers. A
            denoiser may keep there what it can use at the next step.

        Returns
        -------
        Estimate
            float32, on the denoiser's device, without a gradient with respect to x.

        Raises
        ------
        InputError
            When x has a wrong shape, is not finite or too large; when t is outside (0, 1) or its noise
            variance is below `LEAST_BETA`; when the label is unknown, or there are not B `image_ids`.
        PatchIndexError
            When the posterior mean is not finite, because a store or a network is damaged for example; when
            the memory of a GPU does not suffice.
        """
        return self._posterior_mean(x, t, label, None, seed, image_ids, progress, cache)

    @plain_state()
    def _posterior_mean(
        self,
        x: Tensor,
        t: float | Tensor,
        label: Label | None,
        k: int | None,
        seed: int,
        image_ids: Sequence[int] | None,
        progress: Progress | None,
        cache: TrajectoryCache | None,
    ) -> Estimate:
        """Check a call, estimate the images of each time, and join the parts."""
        x = self.check_x(x)
        times = times_of(t, len(x))
        number = self.label if label is None else self.number_of(label)
        self.check_label(number)
        numbers = image_numbers(image_ids, len(x))
        check_least(seed=(seed, 0))
        seed = int(seed)
        self._check_images(number)
        progress = as_progress(progress)
        distinct = list(dict.fromkeys(times))
        parts, rows = [], []
        with use_threads(self._threads), enough_memory(self.device, *self._if_out_of_memory):
            for i, time in enumerate(distinct):
                mine = [row for row, its_time in enumerate(times) if its_time == time]
                part = part_of(progress, "posterior mean", i / len(distinct), (i + 1) / len(distinct))
                call = Call(time, number, [numbers[row] for row in mine], seed, part, cache, k)
                estimate = self._estimate(x[mine], self._beta(time), call)
                self._check_mean(estimate.mean, len(mine), time)
                parts.append(estimate.to(self.device))
                rows += mine
            joined = Estimate.cat(parts)
            return joined[torch.argsort(torch.tensor(rows, device=self.device))]

    def _check_mean(self, mean: Tensor, batch: int, t: float) -> None:
        """Refuse a posterior mean that is not finite or has another shape than the noisy images."""
        if tuple(mean.shape) != (batch, *self.shape):
            what = f"is of shape {tuple(mean.shape)}, not {(batch, *self.shape)}"
        elif not bool(torch.isfinite(mean).all()):
            what = "is not finite"
        else:
            return
        raise PatchIndexError(
            f"the posterior mean at t = {t:.4g} {what}", where=self._who, remedy=self._if_not_finite
        )

    @property
    def _who(self) -> str:
        """The name of the denoiser in errors."""
        return f"denoiser {type(self).__name__}"

    @property
    def _if_out_of_memory(self) -> Sequence[str | Option]:
        """The remedy where the memory of a GPU does not suffice."""
        return ["use a smaller ", Option("batch_size")]

    @property
    def _if_not_finite(self) -> str:
        """The remedy for a posterior mean that is not finite."""
        return "check the function that computes it"

    @property
    def _if_diverged(self) -> str | Sequence[str | Option]:
        """The remedy for a trajectory that diverges."""
        return self._if_not_finite

    def score(self, x: Tensor, t: float | Tensor, *, label: Label | None = None) -> Tensor:
        """Return `(a mu - x) / beta`, (B, C, H, W); mu is the `posterior_mean` and a = sqrt(1 - beta)."""
        return self.score_of(self.posterior_mean(x, t, label=label).mean, x, t)

    def __call__(self, x: Tensor, t: float | Tensor, *args: Any, **options: Any) -> Tensor:
        """Return the `score`."""
        return self.score(x, t, *args, **options)

    @plain_state()
    def score_of(self, mean: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        """Return the score that goes with a posterior mean at (x, t)."""
        x = self.check_x(x)
        beta = torch.tensor([self._beta(time) for time in times_of(t, len(x))], dtype=torch.float64)
        x, mean = to_float64(x), to_float64(mean)
        beta = beta.to(x.device)[:, None, None, None]
        return (((1 - beta).sqrt() * mean - x) / beta).float().to(self.device)

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
        """Return noisy images on the denoiser's device, in float32; refuse images that no call accepts."""
        if not isinstance(x, Tensor) or x.dim() != 4 or tuple(x.shape[1:]) != self.shape or len(x) == 0:
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            expected = "(B, {}, {}, {})".format(*self.shape)
            remedy = f"give {name}[None]" if found == self.shape else "reshape it"
            raise InputError(
                f"must be a tensor of shape {expected}, got {found}", parameter=name, remedy=remedy
            )
        if x.layout != torch.strided or x.device.type == "meta" or x.dtype not in FLOATS:
            raise InputError(
                f"must be finite floats in a dense tensor, got {x.dtype} ({x.layout}, {x.device})",
                parameter=name,
                remedy="give float32",
            )
        if not bool(torch.isfinite(x).all()):
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

    def check_course(self, x: Tensor, t: float, step: int) -> None:
        """Refuse noisy images (B, C, H, W) at time t, before step `step` of a sampler, that no call accepts.

        Raises PatchIndexError when a value is not finite or beyond `LARGEST_X`. The error names the denoiser,
        because the values follow from its own posterior means: the trajectory diverged.
        """
        largest = float(x.abs().max())
        if not largest <= LARGEST_X:  # NaN is not
            raise PatchIndexError(
                f"the trajectory diverged: at step {step}, t = {t:.4g}, a value is {largest:.3g}",
                where=self._who,
                remedy=self._if_diverged,
            )
