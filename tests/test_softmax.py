"""The mergeable softmax: one state however its members are split, ordered or sampled."""

from __future__ import annotations

import math

import pytest
import torch

from patchindex.errors import InputError
from patchindex.softmax import SoftmaxState

# float64 sums of the same few hundred terms in another order.
ROUNDING = 1e-12
FLOAT64 = ("weight", "weight_sq", "centre", "variance")


def members(*shape, channels=3, seed=0, spread=20.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(shape, generator=generator, dtype=dtype)
    centres = torch.rand(*shape, channels, generator=generator, dtype=dtype) * 2 - 1
    return logits, centres


def sampled(logits, centres, probability, valid=None):
    """The state of members that a random sample holds with these probabilities, independently."""
    state = SoftmaxState.of(logits, centres, valid)
    m, w = 1 / probability, (logits - state.max_logit.unsqueeze(-1)).exp()
    if valid is not None:
        w = w * valid

    def sums(weights):
        first = (weights.unsqueeze(-1) * centres).sum(-2), (weights.unsqueeze(-1) * centres**2).sum(-2)
        return weights.sum(-1), *first

    state.weight, state.centre, _ = sums(m * w)
    state.weight_sq = (m * w * w).sum(-1)
    v0, v1, v2 = sums(m * (m - 1) * w * w)
    state.variance = torch.cat([v0.unsqueeze(-1), v1, v2], -1)
    return state


def a_sample(*shape, seed=0, **settings):
    """The arguments of `sampled`."""
    generator = torch.Generator().manual_seed(seed + 100)
    probability = (-3 * torch.rand(shape, generator=generator, dtype=torch.float64)).exp()
    return *members(*shape, seed=seed, **settings), probability


def assert_same(a, b, tolerance=ROUNDING):
    assert torch.equal(a.count, b.count)
    torch.testing.assert_close(a.max_logit, b.max_logit, rtol=0, atol=0)
    for name in FLOAT64:
        x, y = getattr(a, name), getattr(b, name)
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("seed", range(5))
def test_any_split_in_any_order_gives_the_state_of_all_members(seed):
    logits, centres, probability = a_sample(4, 5, 300, seed=seed)
    whole = sampled(logits, centres, probability)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(300, generator=generator)
    cuts = torch.randint(1, 299, (6,), generator=generator).unique().sort().values.tolist()
    parts = [part for part in torch.tensor_split(order, cuts) if len(part)]
    states = [sampled(logits[..., p], centres[..., p, :], probability[..., p]) for p in parts]
    state = SoftmaxState.empty((4, 5), 3)
    for part in states:
        state.merge(part)
    assert_same(state, whole)
    while len(states) > 1:  # as a tree
        right, left = states.pop(), states.pop(0)
        right.merge(left)
        states.insert(0, right)
    assert_same(states[0], whole)


def test_merging_is_commutative_and_leaves_the_other_state_alone():
    a, b = sampled(*a_sample(6, 7)), sampled(*a_sample(6, 13, seed=1))
    ab, ba, before = a.clone(), b.clone(), b.clone()
    ab.merge(b)
    ba.merge(a)
    assert_same(ab, ba)
    assert_same(b, before, 0)


def test_the_empty_state_is_neutral_on_both_sides():
    state = sampled(*a_sample(3, 10))
    left, right = SoftmaxState.empty((3,), 3), state.clone()
    left.merge(state)
    right.merge(SoftmaxState.empty((3,), 3))
    assert_same(left, state, 0)
    assert_same(right, state, 0)
    nothing = SoftmaxState.empty((3,), 3)
    nothing.merge(SoftmaxState.empty((3,), 3))
    assert (nothing.count == 0).all()
    assert (nothing.max_logit == -torch.inf).all()
    assert nothing.mean().isnan().all()
    assert all((getattr(nothing, name) == 0).all() for name in FLOAT64)
    nothing.merge(state)
    assert_same(nothing, state, 0)


def test_members_that_weigh_nothing_leave_no_weight():
    logits, centres = torch.full((3, 4), -torch.inf), torch.ones(3, 4, 2)
    state = SoftmaxState.of(logits, centres)
    state.add(logits, centres)
    assert (state.weight == 0).all()
    assert (state.centre == 0).all()
    assert (state.count == 8).all()


def test_the_mean_is_that_of_torch_softmax():
    logits, centres = members(4, 5, 100)
    state = SoftmaxState.of(logits, centres)
    p = logits.softmax(-1)
    torch.testing.assert_close(state.mean(), torch.einsum("abn,abnc->abc", p, centres), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(state.ess(), 1 / p.square().sum(-1), rtol=ROUNDING, atol=0)
    torch.testing.assert_close(state.log_weight(), logits.logsumexp(-1), rtol=ROUNDING, atol=0)
    assert torch.equal(state.count, torch.full((4, 5), 100))
    assert torch.equal(state.stderr(), torch.zeros(4, 5, 3, dtype=torch.float64))


def test_a_scaled_state_counts_its_members_several_times():
    logits, centres = members(5, 8)
    m = torch.tensor([1.0, 2.0, 3.0, 1.0, 4.0], dtype=torch.float64)
    state = SoftmaxState.of(logits, centres)
    state.scale(m)
    for row, times in enumerate(m.int().tolist()):
        repeated = SoftmaxState.of(logits[row].repeat(times), centres[row].repeat(times, 1))
        for name in ("mean", "ess", "log_weight"):
            ours, theirs = getattr(state[row], name)(), getattr(repeated, name)()
            torch.testing.assert_close(ours, theirs, rtol=ROUNDING, atol=ROUNDING)
    assert (state.count == 8).all()


def test_scaling_keeps_the_mean_and_its_standard_error():
    state, factor = sampled(*a_sample(5, 30)), torch.tensor([0.0, 0.25, 1.0, 3.0, 1e6], dtype=torch.float64)
    before = state.clone()
    state.scale(factor)
    # Where one member has nearly all weight, the terms of its variance cancel up to 1e-16.
    torch.testing.assert_close(state.mean()[1:], before.mean()[1:], rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(state.stderr()[1:], before.stderr()[1:], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(state.ess()[1:], (before.ess() * factor)[1:], rtol=ROUNDING, atol=0)
    torch.testing.assert_close(state.variance, before.variance * factor[:, None] ** 2, rtol=ROUNDING, atol=0)
    assert torch.equal(state.max_logit[1:], before.max_logit[1:])
    assert (state.max_logit[0], state.weight[0]) == (-torch.inf, 0)
    other = before.clone()
    other.merge(state)
    torch.testing.assert_close(other.mean()[0], before.mean()[0], rtol=ROUNDING, atol=ROUNDING)


def test_each_pixel_of_a_grid_is_scaled_by_its_own_factor():
    state, factor = sampled(*a_sample(4, 5, 30)), torch.arange(20, dtype=torch.float64).reshape(4, 5)
    expected = state.reshape((20,))
    expected.scale(factor.flatten())
    state.scale(factor)
    assert_same(state.reshape((20,)), expected, 0)


def test_the_variance_of_the_mean_is_that_of_the_residuals():
    logits, centres, probability = a_sample(4, 5, 30, spread=1.0)
    state = sampled(logits, centres + 2, probability)  # means far from 0
    m, w = 1 / probability, (logits - state.max_logit.unsqueeze(-1)).exp()
    residual = centres + 2 - state.mean().unsqueeze(-2)
    sums = ((m * (m - 1) * w * w).unsqueeze(-1) * residual**2).sum(-2)
    expected = sums / (m * w).sum(-1, keepdim=True) ** 2
    torch.testing.assert_close(state.mean_variance(), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(state.stderr(), expected.sqrt(), rtol=1e-9, atol=0)


def test_centres_that_pixels_share_are_broadcast():
    logits, centres = members(4, 5, 30)
    for shared in (centres[0, 0], centres[:1, :1], centres[:, :1], centres[:1]):
        full = shared.expand(4, 5, 30, 3).contiguous()
        assert_same(SoftmaxState.of(logits, shared), SoftmaxState.of(logits, full))
    assert_same(SoftmaxState.of(logits[0, 0], centres[0, 0]), SoftmaxState.of(logits, centres)[0, 0])


def test_only_valid_members_count():
    logits, centres = members(6, 40)
    valid = torch.rand(6, 40, generator=torch.Generator().manual_seed(1)) < 0.5
    valid[0], valid[1] = False, True
    logits[2, ~valid[2]] = 1e4  # larger than all others, and to be ignored
    state = SoftmaxState.of(logits, centres, valid)
    assert torch.equal(state.count, valid.sum(1))
    assert state.max_logit[0] == -torch.inf
    assert state.weight[0] == 0
    assert state.mean()[0].isnan().all()
    for row in range(1, 6):
        mine = valid[row]
        assert_same(state[row], SoftmaxState.of(logits[row, mine], centres[row, mine]))
    # A pixel without members takes the members that come later.
    later = SoftmaxState.of(logits, centres)
    state.merge(later)
    assert_same(state[:1], later[:1])


def test_a_logit_of_minus_infinity_weighs_nothing():
    logits, centres = members(3, 10)
    logits[:, 4] = -torch.inf
    state = SoftmaxState.of(logits, centres)
    rest = [j for j in range(10) if j != 4]
    torch.testing.assert_close(state.mean(), SoftmaxState.of(logits[:, rest], centres[:, rest]).mean())
    assert (state.count == 10).all()
    nothing = SoftmaxState.of(torch.full((3, 4), -torch.inf), centres[:, :4].float())
    state.merge(nothing)
    assert not state.mean().isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [-1e6, -1e4, 1e4, 1e6])
def test_huge_logits_neither_overflow_nor_vanish(shift, dtype):
    logits = torch.tensor([[0.0, -1.0, -2.0]], dtype=dtype) + shift  # exact in float32 for |shift| < 2^24
    centres = torch.tensor([[1.0], [0.0], [-1.0]], dtype=dtype)
    state = SoftmaxState.of(logits, centres)
    far = SoftmaxState.of(logits - 4e5, centres)  # exp(-4e5) is 0
    state.merge(far)
    w = [1, math.exp(-1), math.exp(-2)]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14  # a few roundings of the data type
    assert float(state.mean()) == pytest.approx((w[0] - w[2]) / sum(w), rel=tolerance)
    assert float(state.log_weight()) == pytest.approx(shift + math.log(sum(w)), rel=1e-7)
    assert int(state.count) == 6


def test_reduce_merges_along_a_dimension():
    logits, centres, probability = a_sample(4, 5, 6, 30)
    flat = sampled(
        logits.movedim(1, -2).flatten(-2),
        centres.movedim(1, -3).flatten(-3, -2),
        probability.movedim(1, -2).flatten(-2),
    )
    assert_same(sampled(logits, centres, probability).reduce(1), flat)


def test_grids_are_taken_apart_and_joined():
    logits, centres, probability = a_sample(7, 5, 30)
    state = sampled(logits, centres, probability)
    assert_same(SoftmaxState.cat([state[:2], state[2:3], state[3:]]), state, 0)
    rows = torch.tensor([3, 0, 6])
    assert_same(state.select((rows, 1)), sampled(logits[rows, 1], centres[rows, 1], probability[rows, 1]))
    assert_same(state.transpose(0, 1)[2], state[:, 2], 0)
    assert_same(state.reshape((35,))[5:10], state[1], 0)


def test_write_replaces_some_pixels_only():
    state, other = sampled(*a_sample(7, 5, 30)), sampled(*a_sample(7, 5, 20, seed=1))
    mask = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    written = state.clone()
    written.write(mask, other[mask])
    assert_same(written[mask], other[mask], 0)
    assert_same(written[~mask], state[~mask], 0)


def test_merge_at_some_pixels_touches_no_others():
    state, more = sampled(*a_sample(7, 5, 30)), sampled(*a_sample(2, 5, 30, seed=1))
    rows, expected = torch.tensor([5, 1]), state.clone()
    both = [SoftmaxState.cat([state[r][None], more[i][None]]).reduce(0)[None] for i, r in enumerate(rows)]
    expected.write(rows, SoftmaxState.cat(both))
    state.merge(more, rows)
    assert_same(state, expected)


def test_no_members_are_refused():
    with pytest.raises(InputError, match="no members"):
        SoftmaxState.of(torch.zeros(3, 0), torch.zeros(3, 0, 1))


@pytest.fixture(scope="module")
def poisson():
    """Estimates from 20 000 Poisson samples of the same 400 members, and the truth."""
    logits, centres = members(400, channels=2, spread=1.0)
    truth = SoftmaxState.of(logits, centres)
    generator = torch.Generator().manual_seed(1)
    # Heavy members are more likely to be in the sample, but none is for certain.
    probability = (0.5 * logits.exp() / logits.exp().mean()).clamp(0.1, 0.95)
    states = []
    for _ in range(20):
        kept = torch.rand(1000, 400, generator=generator, dtype=torch.float64) < probability
        states.append(
            sampled(logits.expand(1000, -1), centres.expand(1000, -1, -1), probability.expand(1000, -1), kept)
        )
    return truth, SoftmaxState.cat(states)


def test_sums_over_a_poisson_sample_are_unbiased(poisson):
    truth, drawn = poisson
    totals = drawn.log_weight().exp()
    error = totals.std() / math.sqrt(len(totals))
    assert abs(totals.mean() - truth.log_weight().exp()) < 4 * error  # 4 standard errors: 6e-5 by chance
    # A ratio of sums has a bias of the order of its variance, far under one standard error.
    bias = drawn.mean().mean(0) - truth.mean()
    assert (
        bias.abs() < 4 * drawn.mean().std(0) / math.sqrt(len(totals)) + drawn.stderr().square().mean(0)
    ).all()


def test_the_standard_error_is_the_spread_of_poisson_samples(poisson):
    _, drawn = poisson
    spread = drawn.mean().std(0)
    predicted = drawn.stderr().square().mean(0).sqrt()
    # 20 000 repeats tell the spread to 0.5 %; the linearised variance is low by about 1 in the sample size
    # (200 here), and the estimate of it is noisy. 5 % also tells apart m - 1 from m (12 % and more).
    torch.testing.assert_close(predicted, spread, rtol=0.05, atol=0)


def test_one_in_three_normalised_errors_is_over_one(poisson):
    truth, drawn = poisson
    z = (drawn.mean() - truth.mean()) / drawn.stderr()
    # 31.7 % for a normal distribution; the ratio of two sums is only nearly normal.
    assert 0.29 < float((z.abs() > 1).double().mean()) < 0.36


def test_a_float32_sum_of_45_million_equal_weights_is_whole():
    """A float32 sum stops at 2^24 = 16.8 M: the state has to be float64."""
    n, tiles = 100_000, 450
    logits, centres = torch.zeros(n), torch.full((n, 1), 0.25)
    tile = SoftmaxState.of(logits, centres)
    state = SoftmaxState.empty((), 1)
    for _ in range(tiles):
        state.merge(tile)
    assert int(state.count) == n * tiles
    assert float(state.weight) == pytest.approx(n * tiles, rel=1e-9)
    assert float(state.ess()) == pytest.approx(n * tiles, rel=1e-9)
    assert float(state.mean()) == pytest.approx(0.25, rel=1e-9)
    assert all(getattr(state, name).dtype == torch.float64 for name in FLOAT64)
