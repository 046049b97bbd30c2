"""Sums of random groups of training images, and the standard error of an estimate from some of the groups.

The images are in random order, and a *group* is a run of them. The sums over the groups that were scanned,
divided by their share of the images, are unbiased, and the spread of the groups gives the standard error.
This is an estimate from the patches that were drawn. A patch that was not drawn may weigh more than all drawn
patches together. `GroupSums.allowance` estimates the error by such patches from the tail of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from patchindex.devices import float64_device
from patchindex.softmax import SoftmaxState

__all__ = ["GroupSums", "covariance_of_groups"]

TAIL = 16  # the heaviest groups, whose weights give the exponent of the tail
# The squared distance between an undrawn heavy patch's centre and the mean, per channel: this multiple of the
# spread between groups, and this at least. Decision record 16 has the figures that chose them.
SPREAD, LEAST_SPREAD = 4.0, 0.04
NODES = 12  # of the quadrature over the tail


def covariance_of_groups(
    weight: Tensor, centre: Tensor, squares: Tensor, groups: Tensor | float, share: Tensor | float
) -> Tensor:
    """Return the `variance` of a state that a random sample estimates.

    With `Z_g = (W_g, C_g)` the sums of group g, G groups and the share f of all members,
    `(1 / f) sum_g Z_g` has the covariance

        (1 - f) / f^2 G / (G - 1) (sum_g Z_g Z_g^T - sum_g Z_g sum_g Z_g^T / G)

    Parameters
    ----------
    weight : Tensor, shape (..., 1)
        `sum_g W_g`.
    centre : Tensor, shape (..., C)
        `sum_g C_g`.
    squares : Tensor, shape (..., 1 + 2 C)
        The sums over g of `W_g^2`, `W_g C_g` and `C_g^2`.
    groups, share : Tensor, shape (..., 1), or float
        G, and f.
    """
    sums = torch.cat([weight, centre], -1)
    products = torch.cat([weight * sums, centre * centre], -1)
    return (squares - products / groups) * ((1 - share) / (share * share) * groups / (groups - 1))


@dataclass
class GroupSums:
    """Sums over groups of training images, for M pixels.

    `top` is the largest logit, and the other sums are relative to its exponential. `squares` has the sums
    over groups of `W_g^2`, `W_g C_g` and `C_g^2`, `spread` of `C_g^2 / W_g`; `heaviest` are the logarithms of
    the weights of the heaviest groups, from the heaviest one.
    """

    top: Tensor  # (M,)
    weight: Tensor  # (M, 1)
    weight_sq: Tensor  # (M, 1)
    centre: Tensor  # (M, C)
    squares: Tensor  # (M, 1 + 2 C)
    spread: Tensor  # (M, C)
    heaviest: Tensor  # (M, TAIL + 1)
    count: Tensor  # (M,)
    groups: int = 0

    @classmethod
    def empty(cls, pixels: int, channels: int, device: torch.device) -> GroupSums:
        """Return the sums over no group."""
        where = float64_device(device)

        def zeros(*tail: int) -> Tensor:
            return torch.zeros((pixels, *tail), dtype=torch.float64, device=where)

        return cls(
            top=zeros() - torch.inf, weight=zeros(1), weight_sq=zeros(1), centre=zeros(channels),
            squares=zeros(1 + 2 * channels), spread=zeros(channels), heaviest=zeros(TAIL + 1) - torch.inf,
            count=zeros().long(),
        )  # fmt: skip

    @staticmethod
    def bytes_a_pixel(channels: int, parts: int) -> int:
        """Return the bytes of a pixel's sums, and of the states of so many groups, with copies."""
        return 8 * (3 * parts * (5 + 3 * channels) + 2 * (8 + 4 * channels + TAIL))

    def add(self, states: SoftmaxState) -> None:
        """Add the states of more groups, of shape (P, M)."""
        top = torch.maximum(self.top, states.max_logit.amax(0))
        old, new = (self.top - top).exp().unsqueeze(-1), (states.max_logit - top).exp().unsqueeze(-1)
        weight, centre = states.weight.unsqueeze(-1) * new, states.centre * new
        sums = torch.cat([weight, centre], -1)
        self.top = top
        self.weight = self.weight * old + weight.sum(0)
        self.weight_sq = self.weight_sq * old.square() + (states.weight_sq.unsqueeze(-1) * new.square()).sum(
            0
        )
        self.centre = self.centre * old + centre.sum(0)
        self.squares = self.squares * old.square() + torch.cat([weight * sums, centre * centre], -1).sum(0)
        # A group's mean is within [-1, 1] also where its weight underflows to zero.
        self.spread = self.spread * old + (states.mean() * centre).sum(0)
        self.heaviest = torch.cat([self.heaviest, states.log_weight().T], -1).topk(TAIL + 1, -1).values
        self.count = self.count + states.count.sum(0)
        self.groups += len(states.weight)

    def restrict(self, pixels: Tensor) -> GroupSums:
        """Return the sums of some pixels: a mask (M,)."""
        chosen = {name: value[pixels] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return GroupSums(**chosen, groups=self.groups)

    def state(self, share: float) -> SoftmaxState:
        """Return the estimated state of all members, (M,), of which this share was scanned."""
        variance = covariance_of_groups(self.weight, self.centre, self.squares, self.groups, share)
        weight, weight_sq = self.weight[:, 0] / share, self.weight_sq[:, 0] / share
        return SoftmaxState(self.top, weight, weight_sq, self.centre / share, variance, self.count)

    def allowance(self, share: float) -> Tensor:
        """Return the expected squared error by patches that were not drawn, (M,), mean over channels.

        The weights of groups are taken to have a Pareto tail, `P(W > w) ~ w^(-1 / k)`, with Hill's estimate
        of k from the heaviest groups. Then (1 - f) / f groups that were not drawn are expected to be heavier
        than the heaviest one drawn, which has the share r of the estimated sum of weights. Each moves the
        mean by `rho / (1 + rho)` of its distance d from the mean:

            (1 - f) / f d^2 int_0^1 (rho / (1 + rho))^2 dv,    rho = r v^-k
        """
        if share == 1:
            return torch.zeros_like(self.top)
        tail = min(TAIL, self.groups // 2)
        k = (self.heaviest[:, :tail].mean(-1) - self.heaviest[:, tail]).clamp(0, 8)
        k = k.nan_to_num(8.0)  # weights of zero
        heaviest = (self.heaviest[:, 0] - self.top).exp() / (self.weight[:, 0] / share)
        moved = torch.zeros_like(k)
        for v in _nodes():
            rho = heaviest * v**-k
            moved += (rho / (1 + rho)).square() / NODES
        mean = self.centre / self.weight
        spread = (self.spread / self.weight - mean.square()).mean(-1)
        distance = (SPREAD * spread).clamp_min(LEAST_SPREAD)
        return (1 - share) / share * distance * moved


def _nodes() -> Iterator[float]:
    yield from ((i + 0.5) / NODES for i in range(NODES))
