"""Samplers: free functions over any score `model(x, t)`.

Each integrates the reverse of `x_t = sqrt(1 - beta) x_0 + sqrt(beta) eps` from noise to data. `a` stands for
`sqrt(1 - beta)`, and a prime for the value after a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from patchindex.errors import InputError
from patchindex.sampling.grids import Steps, time_grid
from patchindex.schedules import NoiseSchedule

__all__ = ["SAMPLERS", "Callback", "Sampler", "ddim", "ddpm", "dpmpp", "euler", "heun"]

Model = Callable[[Tensor, float], Tensor]  # the score
Callback = Callable[[dict[str, Any]], None]
Draw = Callable[[Tensor, int], Tensor]  # standard normal noise of the shape of x, for step i

SHORTEST = 1e-9  # length of a step in log sigma; the length of a shorter step is a rounding error


def ddim(
    model: Model,
    x: Tensor,
    steps: Steps,
    noise: NoiseSchedule,
    callback: Callback | None = None,
    *,
    eta: float = 0.0,
    draw: Draw | None = None,
) -> Tensor:
    """Integrate by DDIM (Song, Meng & Ermon, arXiv 2010.02502), deterministic for `eta = 0`.

    With `r = a' / a`, a step is

        eps = -sqrt(beta) score(x, t)
        s   = eta sqrt(beta' / beta (1 - r^-2))            (0 for eta = 0)
        x'  = r x + (sqrt(beta' - s^2) - r sqrt(beta)) eps + s z,    z standard normal

    Parameters
    ----------
    model : callable
        `model(x, t)` returns the score, shape of x.
    x : Tensor, shape (n, C, H, W)
        Noise, at the first time of the grid.
    steps : int, or sequence of float
        As for `time_grid`, which has the times of the grid: an int N stands for the grid of the paper's code,
        t = (N - 1) / N, ..., 1 / N, 0.
    noise : callable
        The noise schedule, from t to beta.
    callback : callable, optional
        Called after each step with a dict of `i` (the number of steps that are left before this one), `t`,
        `t_next`, `x` (the image after the step) and `score`.
    eta : float
        In [0, 1]. 1 gives the ancestral sampler of DDPM.
    draw : callable, optional
        `draw(x, i)` returns the noise z of a step; by default torch's global generator draws it.

    Returns
    -------
    Tensor, shape (n, C, H, W)
        The images, at the last time of the grid.

    Raises
    ------
    InputError
        When `steps` makes no sense, or eta is outside [0, 1].

    Examples
    --------
    All data are 0, and the score is `-x / beta`:

    >>> from patchindex.schedules import cosine
    >>> float(ddim(lambda x, t: -x / cosine(t), torch.ones(1, 1, 2, 2), 20, cosine).abs().max())
    0.0
    """
    if not 0 <= eta <= 1:
        raise InputError(f"must lie in [0, 1], got {eta}", parameter="eta", remedy="0 draws no noise")
    for step in _steps(steps, noise):
        score = model(x, step.t)
        s2 = eta**2 * step.beta_next / step.beta * (1 - step.r**-2)
        to = (step.beta_next - s2) ** 0.5
        x = step.r * x - (to - step.r * step.beta**0.5) * step.beta**0.5 * score
        if s2 > 0:
            x = x + s2**0.5 * (torch.randn_like(x) if draw is None else draw(x, step.i))
        step.report(callback, x, score)
    return x


def ddpm(
    model: Model,
    x: Tensor,
    steps: Steps,
    noise: NoiseSchedule,
    callback: Callback | None = None,
    *,
    draw: Draw | None = None,
) -> Tensor:
    """Integrate by the ancestral sampler of DDPM (Ho, Jain & Abbeel, arXiv 2006.11239).

    A step draws x' from `q(x' | x, x_0 = mu)`, whose variance is `beta' / beta (1 - (a / a')^2)`: DDIM with
    `eta = 1`. `ddim` describes the parameters.
    """
    return ddim(model, x, steps, noise, callback, eta=1.0, draw=draw)


def euler(
    model: Model, x: Tensor, steps: Steps, noise: NoiseSchedule, callback: Callback | None = None
) -> Tensor:
    """Integrate the probability-flow ODE by Euler steps in sigma = sqrt(beta) / a.

    The ODE is `d(x / a) / d sigma = eps` (Karras et al., arXiv 2206.00364, equation 1). An Euler step of it
    is a deterministic DDIM step, so both samplers give the same images. `ddim` describes the parameters.
    """
    return ddim(model, x, steps, noise, callback)


def heun(
    model: Model, x: Tensor, steps: Steps, noise: NoiseSchedule, callback: Callback | None = None
) -> Tensor:
    """Integrate the probability-flow ODE by Heun's method (Karras et al., arXiv 2206.00364, algorithm 1).

    A step averages eps at x and at the end of an Euler step, so that it calls the model twice; a step to
    t = 0, where no score is defined, is an Euler step. The error falls with the square of the number of
    steps. `ddim` describes the parameters; the callback gets the first score of a step.
    """
    for step in _steps(steps, noise):
        score = model(x, step.t)
        eps = -(step.beta**0.5) * score
        if min(step.t_next, step.beta_next) > 0:
            ahead = model(step.along(x, eps), step.t_next)
            eps = (eps - step.beta_next**0.5 * ahead) / 2
        x = step.along(x, eps)
        step.report(callback, x, score)
    return x


def dpmpp(
    model: Model, x: Tensor, steps: Steps, noise: NoiseSchedule, callback: Callback | None = None
) -> Tensor:
    """Integrate the probability-flow ODE by DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2).

    With the posterior mean `mu = (x + beta score) / a`, the sigma `s = sqrt(beta) / a` and a step of length
    `h = log(s / s')` after a step of length `h_before`, a step is

        D  = mu + h / (2 h_before) (mu - mu_before)
        x' = sqrt(beta' / beta) x + a' (1 - s' / s) D

    The first step and a step to beta = 0 have D = mu: they are Euler steps. A step between equal noise
    variances leaves x as it is, and is no "step before". The error falls with the square of the number of
    steps, and a step calls the model once. `ddim` describes the parameters.
    """
    before: tuple[Tensor, float] | None = None
    for step in _steps(steps, noise):
        score = model(x, step.t)
        mean = (x + step.beta * score) / (1 - step.beta) ** 0.5
        target, length = mean, -math.log(step.shrink) if step.beta_next > 0 else math.inf
        if before is not None and length < math.inf:
            target = mean + length / (2 * before[1]) * (mean - before[0])
        share = (step.beta_next / step.beta) ** 0.5
        x = share * x + (1 - step.beta_next) ** 0.5 * (1 - step.shrink) * target
        if length > SHORTEST:
            before = mean, length
        step.report(callback, x, score)
    return x


@dataclass(frozen=True)
class _Step:
    """A step of a grid, from t to t_next."""

    i: int
    t: float
    t_next: float
    beta: float
    beta_next: float

    @property
    def r(self) -> float:
        """The ratio of the image's share after and before the step."""
        return ((1 - self.beta_next) / (1 - self.beta)) ** 0.5

    @property
    def shrink(self) -> float:
        """The ratio of sigma = sqrt(beta) / a after and before the step."""
        return (self.beta_next / self.beta) ** 0.5 / self.r

    def along(self, x: Tensor, eps: Tensor) -> Tensor:
        """Return x moved along eps."""
        return self.r * x + (self.beta_next**0.5 - self.r * self.beta**0.5) * eps

    def report(self, callback: Callback | None, x: Tensor, score: Tensor) -> None:
        if callback is not None:
            callback({"i": self.i, "t": self.t, "t_next": self.t_next, "x": x, "score": score})


def _steps(steps: Steps, noise: NoiseSchedule) -> Iterator[_Step]:
    times = time_grid(steps, noise)
    for number, (t, t_next) in enumerate(pairwise(times)):
        yield _Step(len(times) - 1 - number, t, t_next, noise(t), noise(t_next))


@dataclass(frozen=True)
class Sampler:
    """A sampler that `sample` knows by name.

    Attributes
    ----------
    function : callable
        `function(model, x, times, noise, callback)`, as `ddim`.
    evaluations : int
        Calls of the model per step, at most; progress depends on it.
    random : bool
        True for a function with the keyword `draw`, which draws noise in its steps.
    """

    function: Callable[..., Tensor]
    evaluations: int = 1
    random: bool = False


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(ddim),
    "ddpm": Sampler(ddpm, random=True),
    "euler": Sampler(euler),
    "heun": Sampler(heun, evaluations=2),
    "dpmpp": Sampler(dpmpp),
}
