"""The mergeable softmax: what every softmax of the package is computed by, or ends up in.

For one pixel, with logits `l_j`, centres `c_j` and multiplicities `m_j` (one over the probability with which
member j was drawn; 1 for a member that is there for certain), the posterior mean is

    mu = sum_j m_j exp(l_j) c_j / sum_j m_j exp(l_j)

A `SoftmaxState` holds the sums that `mu`, its effective sample size and its standard error need, relative to
the largest logit seen. States of disjoint members merge in any order, so chunks, threads, shards of a data
set and machines can each make one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patchindex.errors import InputError

__all__ = ["SoftmaxState"]

# Members this far below the largest logit are taken to be just so far: 1e12 of them would not change the 20th
# digit, and exponentials that underflow take ten times as long as others.
NEGLIGIBLE = -80.0


def _scale(logit: Tensor, reference: Tensor) -> Tensor:
    """exp(logit - reference), and 0 where there is nothing yet (both are minus infinity)."""
    return torch.where(logit == -torch.inf, 0.0, torch.exp(logit - reference))


def _weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """sum_j weights[..., j] values[..., j, :], in float64 once summed."""
    if values.dim() < 3 or weights.dim() < 2:
        return (weights @ values).double()
    if values.shape[-3] == 1:  # the pixels along the last dimension share their members: one matrix product
        return (weights @ values.squeeze(-3)).double()
    return (weights.unsqueeze(-2) @ values).squeeze(-2).double()


@dataclass
class SoftmaxState:
    """Softmax sums for a grid of pixels, in float64.

    Attributes
    ----------
    max_logit : Tensor, shape (...)
        The largest logit seen; minus infinity where nothing was added. `w_j = exp(l_j - max_logit)` below.
    weight : Tensor, shape (...)
        `sum_j m_j w_j`.
    weight_sq : Tensor, shape (...)
        `sum_j m_j w_j^2`, for the effective sample size.
    centre : Tensor, shape (..., C)
        `sum_j m_j w_j c_j`.
    variance : Tensor, shape (..., 1 + 2 C)
        `sum_j m_j (m_j - 1) w_j^2 [1, c_j, c_j^2]`, for the standard error. It is zero when every
        multiplicity is 1.
    count : Tensor, shape (...), int64
        How many members were added.

    Notes
    -----
    The state is float64 because a float32 sum over tens of millions of terms of equal weight loses half of
    itself; the tiles that are added may be float32.

    Examples
    --------
    Two members with logits 0 and log 3, split in two and merged:

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
        """Return the state of no members for a grid of pixels of `shape`: the neutral element of `merge`."""

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
    def of(
        cls,
        logits: Tensor,
        centres: Tensor,
        log_multiplicity: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> SoftmaxState:
        """Return the state of `n` members a pixel.

        Parameters
        ----------
        logits : Tensor, shape (..., n), float32 or float64
        centres : Tensor, shape (..., n, C)
            Broadcast against the logits: (n, C) when all pixels have the same members, and a dimension of
            size one where the pixels along it have.
        log_multiplicity : Tensor, shape (..., n), optional
            Logarithm of one over the probability with which each member was drawn, independently of the
            others. None means that every member is certain.
        valid : Tensor of bool, shape (..., n), optional
            False where there is no member. None means that all n are there.

        Raises
        ------
        InputError
            When there are no members to add (n = 0).
        """
        n = logits.shape[-1]
        if n == 0:
            raise InputError("there are no members to add", where="logits")
        if valid is not None:
            logits = torch.where(valid, logits, -torch.inf)
        top = logits.amax(-1)
        # A pixel without members keeps its minus infinity; 0 stands in, so that no NaN arises here.
        below = logits - torch.where(top == -torch.inf, 0.0, top).unsqueeze(-1)
        w = torch.exp(below.clamp_min_(NEGLIGIBLE))
        if valid is not None:
            w = torch.where(valid, w, 0.0)
        m = None if log_multiplicity is None else torch.exp(log_multiplicity)
        mw = w if m is None else m * w
        channels = centres.shape[-1]
        state = cls.empty(tuple(top.shape), channels, logits.device)
        state.max_logit = top.double()
        state.weight = mw.sum(-1).double()
        state.weight_sq = (mw * w).sum(-1).double()
        state.centre = _weighted_sum(mw, centres)
        state.count += n if valid is None else valid.sum(-1)
        if m is not None:
            v = (m - 1) * mw * w
            moments = [
                v.sum(-1, keepdim=True).double(),
                _weighted_sum(v, centres),
                _weighted_sum(v, centres.square()),
            ]
            state.variance = torch.cat(moments, -1)
        return state

    @classmethod
    def cat(cls, states: Sequence[SoftmaxState]) -> SoftmaxState:
        """Join the grids of several states along their first dimension."""
        return cls(*(torch.cat(parts) for parts in zip(*(vars(s).values() for s in states), strict=True)))

    def reshape(self, shape: tuple[int, ...]) -> SoftmaxState:
        """Return the same pixels in a grid of another shape."""
        dims = self.max_logit.dim()
        return SoftmaxState(*(f.reshape(*shape, *f.shape[dims:]) for f in vars(self).values()))

    def __getitem__(self, index: Any) -> SoftmaxState:
        return SoftmaxState(*(field[index] for field in vars(self).values()))

    def reduce(self, dim: int) -> SoftmaxState:
        """Merge the states along a dimension (counted from the front) of the grid."""
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
            Which pixels of this state `other` is about, as an index that names no pixel twice.
        """
        pair = (self[at], other)
        stacked = SoftmaxState(
            *(torch.stack(parts) for parts in zip(*(vars(s).values() for s in pair), strict=True))
        )
        for mine, merged in zip(vars(self).values(), vars(stacked.reduce(0)).values(), strict=True):
            mine[at] = merged

    def add(
        self,
        logits: Tensor,
        centres: Tensor,
        log_multiplicity: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> None:
        """Add members: `merge(SoftmaxState.of(logits, centres, log_multiplicity, valid))`."""
        self.merge(SoftmaxState.of(logits, centres, log_multiplicity, valid))

    def scale(self, factor: Tensor) -> None:
        """Multiply the sums, as estimates with a variance, by a factor in place: shape (...), 0 or more."""
        self.max_logit = torch.where(factor > 0, self.max_logit, -torch.inf)
        self.weight, self.weight_sq = self.weight * factor, self.weight_sq * factor
        self.centre = self.centre * factor.unsqueeze(-1)
        self.variance = self.variance * factor.square().unsqueeze(-1)

    def mean(self) -> Tensor:
        """Return the posterior mean, shape (..., C); NaN where nothing was added."""
        return self.centre / self.weight.unsqueeze(-1)

    def log_weight(self) -> Tensor:
        """Return the logarithm of `sum_j m_j exp(l_j)`, shape (...)."""
        return self.max_logit + self.weight.log()

    def ess(self) -> Tensor:
        """Return the effective sample size `(sum m w)^2 / sum m w^2`, shape (...).

        It estimates the effective sample size of the whole softmax, of which the members are a sample.
        """
        return self.weight.square() / self.weight_sq

    def stderr(self) -> Tensor:
        """Return the standard error of the mean, the root of `mean_variance`, shape (..., C)."""
        return self.mean_variance().sqrt()

    def mean_variance(self) -> Tensor:
        """Return the variance of the mean, shape (..., C), of sampling the members independently.

        `Var = D^-2 sum_j m_j (m_j - 1) w_j^2 (c_j - mu)^2`, with D the sum of weights: the linearised
        variance of a ratio of two Horvitz-Thompson sums.
        """
        channels = self.centre.shape[-1]
        v0, v1, v2 = self.variance.split([1, channels, channels], -1)
        mu = self.mean()
        # Rounding can take a variance of zero below it.
        return (v2 - 2 * mu * v1 + mu.square() * v0).clamp_min(0) / self.weight.unsqueeze(-1).square()
