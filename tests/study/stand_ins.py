"""Settings of small comparisons, and denoisers that stand in for others, in the tests of `theory`."""

from __future__ import annotations

import torch

import patchindex as pi
from patchindex.estimators import Estimate
from patchindex.study import TheoryOptions

SIZE = 10
OPTIONS = TheoryOptions(steps=4, network_steps=6, along=2, noised=3, batch_size=2, seed=5)
SHORT = TheoryOptions(steps=2, network_steps=2, along=0, noised=0, seed=5)


class Reweighted(pi.Denoiser):
    """A network that has the settings of another network, and other weights."""

    def __init__(self, network):
        super().__init__(network.shape)
        self.network = network

    @property
    def settings(self):
        return self.network.settings

    def _estimate(self, x, beta, call):
        return self.network.posterior_mean(x + 0.1, call.t)


class StoppedError(Exception):
    """Raised by a denoiser that is interrupted."""


class Fragile(pi.Denoiser):
    """A denoiser of black images that stops after some calls."""

    def __init__(self, shape, calls):
        super().__init__(shape)
        self.calls = calls

    def _estimate(self, x, beta, call):
        self.calls -= 1
        if self.calls < 0:
            raise StoppedError
        one = torch.ones_like(x[:, 0])
        black = -1 + 0.1 * x.mean(dim=1, keepdim=True)
        return Estimate(black, 0 * one, one, one, patches_evaluated=0)
