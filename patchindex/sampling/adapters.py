"""`as_unet`: a denoiser in the place of the network of a diffusers pipeline."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from patchindex.denoisers import Denoiser
from patchindex.denoisers.conventions import MOST_NOISE, mean_at
from patchindex.devices import in_float64, to_float64
from patchindex.errors import InputError
from patchindex.schedules.frames import beta_of_flow, beta_of_sigma, flow_norm, sigma_of

__all__ = ["as_unet"]

PREDICTIONS = ("epsilon", "sample", "v_prediction")


class Predicted(NamedTuple):
    """The prediction, as the output of a `UNet2DModel` has it."""

    sample: Tensor


class UNetStandIn(nn.Module):
    """A module that predicts what a network predicts for a scheduler, from a denoiser's posterior mean.

    `forward(sample, timestep, class_labels=None, return_dict=True)` is that of `UNet2DModel`.
    """

    def __init__(self, denoiser: Denoiser, scheduler: Any, label: int | None, seed: int) -> None:
        super().__init__()
        channels, height, width = denoiser.shape
        self.config = SimpleNamespace(
            in_channels=channels,
            out_channels=channels,
            sample_size=height if height == width else (height, width),
            num_class_embeds=None,
            class_embed_type=None,
        )
        self.dtype, self.device = torch.float32, denoiser.device
        self._denoiser, self._label, self._seed = denoiser, label, seed
        self._level = _level_of(scheduler)

    def forward(
        self,
        sample: Tensor,
        timestep: float | Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Predicted | tuple[Tensor]:
        """Return the prediction for noisy images (B, C, H, W) at a time step of the scheduler.

        Raises InputError when there is not one time step, or one per image, or one class label per image.
        """
        images = len(sample)
        steps = in_float64(timestep).flatten().tolist()
        steps = steps * images if len(steps) == 1 else steps
        labels = [self._label] * images if class_labels is None else class_labels.flatten().tolist()
        for name, given in (("timestep", steps), ("class_labels", labels)):
            if len(given) != images:
                raise InputError(
                    f"there are {len(given)} for {images} images",
                    parameter=name,
                    remedy="give one for each image",
                )
        predicted = torch.empty_like(sample)
        for key in dict.fromkeys(zip(steps, labels, strict=True)):
            rows = [row for row, each in enumerate(zip(steps, labels, strict=True)) if each == key]
            predicted[rows] = (
                self._level(key[0])
                .prediction(self._denoiser, sample[rows], key[1], self._seed)
                .to(sample.dtype)
            )
        return Predicted(predicted) if return_dict else (predicted,)


class _Level(NamedTuple):
    """A noise level of a scheduler."""

    beta: float
    predicts: str
    s: float = math.nan  # time of a rectified flow

    def prediction(self, denoiser: Denoiser, x: Tensor, label: int | None, seed: int) -> Tensor:
        factor = flow_norm(self.s) if self.predicts == "velocity" else 1.0
        mean = mean_at(denoiser, x / factor, [self.beta] * len(x), label=label, seed=seed)
        if self.predicts == "velocity":
            return (x - mean) / self.s
        if self.predicts == "sample":
            return mean
        eps = (x - (1 - self.beta) ** 0.5 * mean) / self.beta**0.5
        if self.predicts == "v_prediction":
            return (1 - self.beta) ** 0.5 * eps - self.beta**0.5 * mean
        return eps


def _level_of(scheduler: Any) -> Any:
    """Return the function from a time step of the scheduler to its noise level."""
    config = getattr(scheduler, "config", None)
    steps = getattr(config, "num_train_timesteps", None)
    predicts = getattr(config, "prediction_type", "flow")
    kept = getattr(scheduler, "alphas_cumprod", None)
    if steps and kept is not None and predicts in PREDICTIONS:
        # Schedulers with noise levels between two steps interpolate log sigma.
        betas = (1 - to_float64(torch.as_tensor(kept))).clamp(max=MOST_NOISE).tolist()
        log_sigmas = [math.log(sigma_of(beta)) for beta in betas]

        def discrete(step: float) -> _Level:
            log_sigma = float(np.interp(step, np.arange(len(log_sigmas)), log_sigmas))
            return _Level(beta_of_sigma(math.exp(log_sigma)), predicts)

        return discrete
    if steps and kept is None and "FlowMatch" in type(scheduler).__name__:
        return lambda step: _Level(beta_of_flow(step / steps), "velocity", step / steps)
    raise InputError(
        f"{type(scheduler).__name__} is no scheduler with alphas_cumprod, and no flow-matching scheduler",
        parameter="scheduler",
        remedy="use DDIMScheduler, DDPMScheduler, HeunDiscreteScheduler or FlowMatchEulerDiscreteScheduler",
    )


def as_unet(denoiser: Denoiser, scheduler: Any, *, label: int | None = None, seed: int = 0) -> UNetStandIn:
    """Return a module that stands in for the `UNet2DModel` of diffusers beside this scheduler.

    The module predicts what the scheduler expects: noise, x_0 or v by its `prediction_type`, and the velocity
    for a flow-matching scheduler. Make the denoiser with `noise="flow"`, which has every noise level.

    Parameters
    ----------
    denoiser : Denoiser
    scheduler : scheduler of diffusers
        With `alphas_cumprod`, such as `DDIMScheduler`, `DDPMScheduler` and `HeunDiscreteScheduler`, or
        `FlowMatchEulerDiscreteScheduler`.
    label : int, optional
        In place of the denoiser's own label, for calls without `class_labels`.
    seed : int
        Of the denoiser's random draws.

    Raises
    ------
    InputError
        When the scheduler is of another kind.

    Examples
    --------
    ::

        scheduler = DDIMScheduler(clip_sample=False)
        pipeline = DDIMPipeline(unet=as_unet(machine, scheduler), scheduler=scheduler)
    """
    return UNetStandIn(denoiser, scheduler, label, seed)
