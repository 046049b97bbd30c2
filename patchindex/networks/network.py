"""`Network`: a trained network as a denoiser; `wrap` makes one of any callable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchindex.checks import is_name_in, is_whole
from patchindex.denoisers import Call, Denoiser
from patchindex.denoisers.arguments import Label
from patchindex.errors import InputError, Option
from patchindex.estimators import Estimate
from patchindex.images import ImageSource
from patchindex.images.by_label import TrainingImages
from patchindex.networks.conversions import PREDICTIONS, TIMES, NoiseTable, mean_of, network_input
from patchindex.networks.provenance import ImagesRecord
from patchindex.runtime import full_precision
from patchindex.schedules import NoiseSchedule

__all__ = ["LARGEST_SIDE", "Network", "wrap"]

LARGEST_SIDE = 16384  # pixels of a side of an image, as files of networks may say

Predict = Callable[..., Tensor]  # (x, time) or, with labels, (x, time, label)


class Network(Denoiser):
    """A trained network as a denoiser: the posterior mean follows from what the network predicts.

    An `Estimate` of a network has no softmax: its `stderr`, `ess` and `captured_mass` are NaN, and its
    `patches_evaluated` is 0. `wrap`, `open_run` and `open_network` make networks.

    Attributes
    ----------
    name : str
    labels : numpy.ndarray or None
        Class labels that the network knows, int64, ascending; a call then needs a label. None for a network
        without labels.
    label_names : tuple of str or None
        Names of the labels 0, 1, ...
    images : ImagesRecord or None
        The images that the network was trained on, if they are known.
    run : dict or None
        The content of `run.json`, for a network that `train` trained.
    """

    def __init__(
        self,
        predict: Predict,
        shape: tuple[int, int, int],
        *,
        predicts: str = "epsilon",
        time: str = "t",
        schedule: str | NoiseSchedule | NoiseTable | Sequence[float] = "cosine",
        labels: Sequence[int] | np.ndarray | None = None,
        label_names: Sequence[str] | None = None,
        label: Label | None = None,
        name: str | None = None,
        device: str | torch.device | None = None,
        threads: int | None = None,
        images: ImagesRecord | None = None,
        run: dict[str, Any] | None = None,
    ) -> None:
        if not callable(predict):
            raise InputError(
                f"{type(predict).__name__} is no function",
                parameter="predict",
                remedy="give a function of (x, time)",
            )
        sides = tuple(shape) if isinstance(shape, Iterable) else ()
        if len(sides) != 3 or not all(is_whole(side) and side > 0 for side in sides):
            raise InputError(
                f"must be (channels, height, width), got {shape}",
                parameter="shape",
                remedy="give (3, 32, 32)",
            )
        shape = (int(sides[0]), int(sides[1]), int(sides[2]))
        if not is_name_in(predicts, PREDICTIONS):
            raise InputError(
                f"unknown prediction {predicts!r}",
                parameter="predicts",
                remedy=f"use {', '.join(PREDICTIONS)}",
            )
        if not is_name_in(time, TIMES):
            raise InputError(
                f"unknown time variable {time!r}", parameter="time", remedy=f"use {', '.join(TIMES)}"
            )
        noise = schedule if isinstance(schedule, str) or callable(schedule) else NoiseTable(schedule)
        if time == "index" and not isinstance(noise, NoiseTable):
            raise InputError(
                "the time variable 'index' needs a table of noise variances",
                parameter="schedule",
                remedy="give 1 - alphas_cumprod",
            )
        self._predict, self._predicts, self._time = predict, predicts, time
        self.labels = None if labels is None else np.unique(np.asarray(labels, np.int64))
        if self.labels is not None and not len(self.labels):
            raise InputError("are none", parameter="labels", remedy="leave it out, or give the known labels")
        self.label_names = None if label_names is None else tuple(label_names)
        self.name = name or getattr(predict, "__name__", type(predict).__name__)
        self.images, self.run = images, run
        super().__init__(shape, noise=noise, label=label, device=device, threads=threads)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the network, as plain data."""
        images = None if self.images is None else self.images.to_json()
        return {
            **super().settings,
            "name": self.name,
            "predicts": self._predicts,
            "time": self._time,
            "images": images,
            "architecture": self.run and self.run["architecture"],
        }

    def check_label(self, label: int | None) -> None:
        """Refuse a label that the network does not know."""
        if self.labels is None:
            if label is not None:
                raise InputError(
                    "the network was trained without labels", parameter="label", remedy="leave it out"
                )
            return
        if label is not None and label not in self.labels:
            known = ", ".join(map(str, self.labels[:20])) + (", ..." if len(self.labels) > 20 else "")
            raise InputError(
                f"the network has no label {label}", parameter="label", remedy=f"use one of {known}"
            )

    def check_images(
        self, images: ImageSource | TrainingImages, *, remedy: str | Sequence[str | Option] | None = None
    ) -> None:
        """Refuse images, and labels of a conditional network, that it was not trained on.

        Images of another shape are always refused; a network whose training images are not known accepts all
        other images.

        Parameters
        ----------
        images : ImageSource or TrainingImages
            `index.training` of a store, or what `open_images` returns.
        remedy : str, or sequence of str and Option, optional
            The remedy of the error about other images, such as an option to go on with them.

        Raises
        ------
        InputError
        """
        source = images.source if isinstance(images, TrainingImages) else images
        shape = (source.shape[3], *source.shape[1:3])
        if shape != self.shape:
            raise InputError(
                f"the network {self.name} is for images of shape {self.shape}, not {shape}",
                where=source.name,
                remedy="give images of this shape, or train a network on these",
            )
        if self.images is None:
            return
        given = ImagesRecord.of(images)
        remedy = remedy or "give the images that it was trained on, with the same options"
        if given.fingerprint != self.images.fingerprint:
            raise InputError(
                f"the network {self.name} was trained on other images "
                f"({self.images.count} of {self.images.source}, fingerprint {self.images.fingerprint}; "
                f"these are {given.count}, fingerprint {given.fingerprint})",
                where=source.name,
                remedy=remedy,
            )
        if self.labels is not None and given.labels not in (None, self.images.labels):
            raise InputError(
                f"the network {self.name} was trained with other labels of these images",
                where=source.name,
                remedy=remedy,
            )

    @property
    def _who(self) -> str:
        return f"network {self.name}"

    @property
    def _if_not_finite(self) -> str:
        return "check its weights"

    @torch.no_grad()
    def _estimate(self, x: Tensor, beta: float, call: Call) -> Estimate:
        if self.labels is not None and call.label is None:
            raise InputError(
                "the network was trained with labels",
                parameter="label",
                remedy=f"give one of its labels, such as {self.labels[0]}",
            )
        given, times = network_input(x, call.t, beta, self._time, self.noise)
        label = () if call.label is None else (torch.full((len(x),), call.label, device=x.device),)
        with full_precision():
            predicted = self._predict(given, times, *label)
        if not isinstance(predicted, Tensor) or predicted.shape != x.shape:
            found = tuple(predicted.shape) if isinstance(predicted, Tensor) else type(predicted).__name__
            raise InputError(
                f"returned {found}, expected a tensor of shape {tuple(x.shape)}",
                where=self._who,
                remedy="check the function that you wrapped",
            )
        mean = mean_of(predicted.float(), x, beta, self._predicts, self._time)
        unknown = torch.full_like(x[:, 0], torch.nan)
        return Estimate(mean.contiguous(), unknown, unknown, unknown, patches_evaluated=0)


def wrap(
    predict: Predict,
    shape: tuple[int, int, int],
    *,
    predicts: str = "epsilon",
    time: str = "t",
    schedule: str | NoiseSchedule | Sequence[float] = "cosine",
    labels: Sequence[int] | None = None,
    label: Label | None = None,
    name: str | None = None,
    device: str | torch.device | None = None,
    threads: int | None = None,
) -> Network:
    """Return a network of your own as a denoiser.

    Parameters
    ----------
    predict : callable
        `predict(x, time)` returns a prediction of the shape of x. x is float32 (B, C, H, W) on `device`, for
        images in [-1, 1]; `time` has shape (B,). With `labels` the function is called as
        `predict(x, time, label)`, label int64 (B,). A torch module is switched to `eval()`.
    shape : tuple of int
        Channels, height and width of the images.
    predicts : str
        `"epsilon"`, `"x0"`, `"v"` or `"score"`; `patchindex.networks.conversions` has the formulas.
    time : str
        `"t"` in (0, 1); `"sigma"`: the network takes `x / a` and `sqrt(beta) / a`; `"index"`: it takes the
        position of the nearest variance in `schedule`.
    schedule : str, callable, or sequence of float
        The noise schedule: a name, a function from t to beta, or noise variances by step, ascending, such
        as `1 - scheduler.alphas_cumprod`.
    labels : sequence of int, optional
        The class labels that the network knows; a call then needs a label.
    label : int, optional
        The label of calls without a label.
    name : str, optional
    device : str or torch.device, optional
        Where x lies; the network must be on the same device.
    threads : int, optional

    Raises
    ------
    InputError
        When an option is unknown, or `"index"` has no table.

    Examples
    --------
    A denoiser that predicts a black image with every pixel at -1:

    >>> black = wrap(lambda x, t: torch.full_like(x, -1.0), (1, 8, 8), predicts="x0")
    >>> float(black.posterior_mean(torch.randn(2, 1, 8, 8), 0.5).mean.max())
    -1.0
    """
    if isinstance(predict, nn.Module):
        predict.eval()
    return Network(
        predict, shape, predicts=predicts, time=time, schedule=schedule, labels=labels, label=label,
        name=name, device=device, threads=threads,
    )  # fmt: skip
