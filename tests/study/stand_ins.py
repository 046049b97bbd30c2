"""Denoisers that stand in for a network or a denoiser in the tests of `theory`."""

from __future__ import annotations

import torch

import patchindex as pi
from patchindex.estimators import Estimate


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
