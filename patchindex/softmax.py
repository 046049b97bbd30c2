"""The mergeable softmax: every softmax over training data ends in a `SoftmaxState`.

The posterior mean of a pixel with logits `l_j` and centres `c_j` is `sum_j exp(l_j) c_j / sum_j exp(l_j)`. A
`SoftmaxState` holds the sums that the mean, its effective sample size and its standard error need, relative
to the largest logit. States of disjoint members merge in any order: tiles, threads, shards and hosts make one
each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patchindex.devices import float64_device, to_float64
from patchindex.errors import InputError
from patchindex.runtime import plain_state

__all__ = ["SoftmaxState"]

# Smaller differences from the largest logit are raised to this one: 1e12 such members would not change the
# 20th digit, and exponentials that underflow take ten times as long as others.
NEGLIGIBLE = -80.0


def _scale(logit: Tensor, reference: Tensor) -> Tensor:
    """Return exp(logit - reference), and 0 where both are minus infinity."""
    return torch.where(logit == -torch.inf, 0.0, torch.exp(logit - reference))


def _weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """Return sum_j weights[..., j] values[..., j, :] in float64."""
    if values.dim() < 3 or weights.dim() < 2:
        return to_float64(weights @ values)
    if values.shape[-3] == 1:  # the pixels along the last dimension share their members: one matrix product
        return to_float64(weights @ values.squeeze(-3))
    return to_float64((weights.unsqueeze(-2) @ values).squeeze(-2))


@dataclass
class SoftmaxState:
    """Softmax sums for a grid of pixels, in float64.

    Attributes
    ----------
    max_logit : Tensor, shape (...)
        The largest logit; minus infinity where there are no members. `w_j = exp(l_j - max_logit)` below.
    weight : Tensor, shape (...)
        `sum_j m_j w_j`: a member of a random sample stands for m_j members, any other member for one.
    weight_sq : Tensor, shape (...)
        `sum_j m_j w_j^2`, for the effective sample size.
    centre : Tensor, shape (..., C)
        `sum_j m_j w_j c_j`.
    variance : Tensor, shape (..., 1 + 2 C)
        Variance of `weight`, its covariances with `centre`, and the variances of `centre`. Zero where no
        member comes from a random sample.
    count : Tensor, shape (...), int64
        Number of members.

    Notes
    -----
    The state is float64 because a float32 sum of tens of millions of equal terms loses half of them. The
    tiles that are added may be float32. On a device without float64, tiles are summed on the device, and the
    state is on the CPU.

    Examples
    --------
    Two members with logits 0 and log 3, added one by one:

    >>> import torch
    >>> s = SoftmaxState.of(torch.tensor([0.0]), torch.tensor([[1.0]]))
    >>> s.merge(SoftmaxState.of(torch.tensor([3.0]).log(), torch.tensor([[-1.0]])))
    >>> round(s.mean().item(), 6), int(s.count)
    (-0.5, 2)
    """

    max_logit: Tensor
    weight: Tensor
    weight_sq: Tensor
    centre: Tensor
    variance: Tensor
    count: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, ...], channels: int, device: torch.device | str = "cpu") -> SoftmaxState:
        """Return the state without members for a grid of pixels: the neutral element of `merge`.

        The state is on the `float64_device` of the device.
        """
        device = float64_device(device)

        def zeros(*tail: int) -> Tensor:
            return torch.zeros((*shape, *tail), dtype=torch.float64, device=device)

        return cls(
            max_logit=torch.full(shape, -torch.inf, dtype=torch.float64, device=device),
            weight=zeros(),
            weight_sq=zeros(),
            centre=zeros(channels),
            variance=zeros(1 + 2 * channels),
            count=torch.zeros(shape, dtype=torch.int64, device=device),
        )

    @classmethod
    @plain_state()
    def of(cls, logits: Tensor, centres: Tensor, valid: Tensor | None = None) -> SoftmaxState:
        """Return the state of `n` members per pixel.

        Parameters
        ----------
        logits : Tensor, shape (..., n), float32 or float64
        centres : Tensor, shape (..., n, C)
            Broadcast against the logits: (n, C) when all pixels have the same members, and a dimension of
            size one where the pixels along it have.
        valid : Tensor of bool, shape (..., n), optional
            False where there is no member; by default all n are members.

        Raises
        ------
        InputError
            When n = 0.
        """
        n = logits.shape[-1]
        if n == 0:
            raise InputError("there are no members to add", parameter="logits")
        if valid is not None:
            logits = torch.where(valid, logits, -torch.inf)
        top = logits.amax(-1)
        # A pixel without members keeps minus infinity; 0 stands in here, so that no NaN arises.
        below = logits - torch.where(top == -torch.inf, 0.0, top).unsqueeze(-1)
        w = torch.exp(below.clamp_min_(NEGLIGIBLE))
        if valid is not None:
            w = torch.where(valid, w, 0.0)
        state = cls.empty(tuple(top.shape), centres.shape[-1], logits.device)
        state.max_logit = to_float64(top)
        state.weight = to_float64(w.sum(-1))
        state.weight_sq = to_float64((w * w).sum(-1))
        state.centre = _weighted_sum(w, centres)
        state.count += n if valid is None else valid.sum(-1).to(state.count.device)
        return state

    @classmethod
    def cat(cls, states: Sequence[SoftmaxState]) -> SoftmaxState:
        """Join the grids of several states along their first dimension."""
        return cls(*(torch.cat(parts) for parts in zip(*(vars(s).values() for s in states), strict=True)))

    def to(self, device: torch.device | str) -> SoftmaxState:
        """Return the state on the `float64_device` of a device; itself if it is there."""
        where = float64_device(device)
        return self._map(lambda field: field.to(where))

    def clone(self) -> SoftmaxState:
        """Return a copy that shares no memory with this state."""
        return self._map(Tensor.clone)

    def reshape(self, shape: tuple[int, ...]) -> SoftmaxState:
        """Return the same pixels in a grid of another shape."""
        dims = self.max_logit.dim()
        return self._map(lambda field: field.reshape(*shape, *field.shape[dims:]))

    def transpose(self, dim0: int, dim1: int) -> SoftmaxState:
        """Return the state with two dimensions of the grid swapped, counted from the front; contiguous."""
        return self._map(lambda field: field.transpose(dim0, dim1).contiguous())

    def select(self, index: Any) -> SoftmaxState:
        """Return the state of some pixels, `state[index]`: an index or a mask of the grid."""
        return self._map(lambda field: field[index])

    __getitem__ = select

    def write(self, index: Any, other: SoftmaxState) -> None:
        """Replace the state of some pixels by `other`, in place."""
        for mine, new in zip(vars(self).values(), vars(other).values(), strict=True):
            mine[index] = new

    def _map(self, function: Callable[[Tensor], Tensor]) -> SoftmaxState:
        return SoftmaxState(*map(function, vars(self).values()))

    def reduce(self, dim: int) -> SoftmaxState:
        """Merge the states along a dimension of the grid, counted from the front."""
        top = self.max_logit.amax(dim)
        scale = _scale(self.max_logit, top.unsqueeze(dim))
        square = scale.square()
        return SoftmaxState(
            max_logit=top,
            weight=(self.weight * scale).sum(dim),
            weight_sq=(self.weight_sq * square).sum(dim),
            centre=(self.centre * scale.unsqueeze(-1)).sum(dim),
            variance=(self.variance * square.unsqueeze(-1)).sum(dim),
            count=self.count.sum(dim),
        )

    def merge(self, other: SoftmaxState, at: Any = ...) -> None:
        """Merge the members of `other` into this state, in place.

        Parameters
        ----------
        other : SoftmaxState
            A state of other members for the same pixels.
        at : index, optional
            The pixels of this state that `other` is about. The index names no pixel twice.
        """
        pair = (vars(self.select(at)).values(), vars(other).values())
        stacked = SoftmaxState(*(torch.stack(parts) for parts in zip(*pair, strict=True)))
        self.write(at, stacked.reduce(0))

    def add(self, logits: Tensor, centres: Tensor, valid: Tensor | None = None) -> None:
        """Add members: `merge(SoftmaxState.of(logits, centres, valid))`."""
        self.merge(SoftmaxState.of(logits, centres, valid))

    def scale(self, factor: Tensor) -> None:
        """Multiply the sums, and their variances by the square, in place: factors of shape (...), >= 0."""
        self.max_logit = torch.where(factor > 0, self.max_logit, -torch.inf)
        self.weight, self.weight_sq = self.weight * factor, self.weight_sq * factor
        self.centre = self.centre * factor.unsqueeze(-1)
        self.variance = self.variance * factor.square().unsqueeze(-1)

    def mean(self) -> Tensor:
        """Return the posterior mean, shape (..., C); NaN where there are no members."""
        return self.centre / self.weight.unsqueeze(-1)

    def log_weight(self) -> Tensor:
        """Return the logarithm of `sum_j m_j exp(l_j)`, shape (...)."""
        return self.max_logit + self.weight.log()

    def ess(self) -> Tensor:
        """Return the effective sample size `(sum m w)^2 / sum m w^2`, shape (...).

        With a random sample this estimates the effective sample size of the whole softmax.
        """
        return self.weight.square() / self.weight_sq

    def stderr(self) -> Tensor:
        """Return the standard error of the mean, the root of `mean_variance`, shape (..., C)."""
        return self.mean_variance().sqrt()

    def mean_variance(self) -> Tensor:
        """Return the variance of the mean that the random sample causes, shape (..., C).

        `D^-2 (Var[N] - 2 mu Cov[N, D] + mu^2 Var[D])` with N = `centre`, D = `weight`: the linearised
        variance of the ratio N / D.
        """
        channels = self.centre.shape[-1]
        v0, v1, v2 = self.variance.split([1, channels, channels], -1)
        mu = self.mean()
        # Rounding can make a variance of zero negative.
        return (v2 - 2 * mu * v1 + mu.square() * v0).clamp_min(0) / self.weight.unsqueeze(-1).square()
