"""The mergeable softmax: one answer however its members are split, ordered, weighted or drawn."""

from __future__ import annotations

import math

import pytest
import torch

from patchindex.errors import InputError
from patchindex.softmax import SoftmaxState

# float64 sums of the same few hundred terms in another order.
ROUNDING = 1e-12


def members(*shape, channels=3, seed=0, spread=20.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(shape, generator=generator, dtype=dtype)
    centres = torch.rand(*shape, channels, generator=generator, dtype=dtype) * 2 - 1
    log_multiplicity = torch.rand(shape, generator=generator, dtype=dtype) * 3
    return logits, centres, log_multiplicity


def assert_same(a, b, tolerance=ROUNDING):
    assert torch.equal(a.count, b.count)
    torch.testing.assert_close(a.max_logit, b.max_logit, rtol=0, atol=0)
    for name in ("weight", "weight_sq", "centre", "variance"):
        torch.testing.assert_close(
            getattr(a, name),
            getattr(b, name),
            rtol=tolerance,
            atol=tolerance,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("seed", range(5))
def test_any_split_in_any_order_agrees_with_one_add(seed):
    logits, centres, log_m = members(4, 5, 300, seed=seed)
    whole = SoftmaxState.of(logits, centres, log_m)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(300, generator=generator)
    cuts = torch.randint(1, 299, (6,), generator=generator).unique().sort().values.tolist()
    parts = [part for part in torch.tensor_split(order, cuts) if len(part)]
    state = SoftmaxState.empty((4, 5), 3)
    for part in parts:
        state.add(logits[..., part], centres[..., part, :], log_m[..., part])
    assert_same(state, whole)
    # As a tree instead of one after the other.
    states = [SoftmaxState.of(logits[..., p], centres[..., p, :], log_m[..., p]) for p in parts]
    while len(states) > 1:
        right, left = states.pop(), states.pop(0)
        right.merge(left)
        states.insert(0, right)
    assert_same(states[0], whole)


def test_merging_is_commutative_and_leaves_the_other_state_alone():
    logits, centres, log_m = members(6, 20)
    a = SoftmaxState.of(logits[:, :7], centres[:, :7], log_m[:, :7])
    b = SoftmaxState.of(logits[:, 7:], centres[:, 7:], log_m[:, 7:])
    ab = SoftmaxState(*(field.clone() for field in vars(a).values()))
    ba = SoftmaxState(*(field.clone() for field in vars(b).values()))
    before = {name: field.clone() for name, field in vars(b).items()}
    ab.merge(b)
    ba.merge(a)
    assert_same(ab, ba)
    for name, field in vars(b).items():
        assert torch.equal(field, before[name])


def test_the_empty_state_is_neutral_on_both_sides():
    state = SoftmaxState.of(*members(3, 10))
    left, right = SoftmaxState.empty((3,), 3), SoftmaxState(*(f.clone() for f in vars(state).values()))
    left.merge(state)
    right.merge(SoftmaxState.empty((3,), 3))
    assert_same(left, state, 0)
    assert_same(right, state, 0)
    nothing = SoftmaxState.empty((3,), 3)
    nothing.merge(SoftmaxState.empty((3,), 3))
    assert (nothing.count == 0).all()
    assert (nothing.max_logit == -torch.inf).all()
    assert nothing.mean().isnan().all()


def test_it_is_torch_softmax():
    logits, centres, _ = members(4, 5, 100)
    state = SoftmaxState.of(logits, centres)
    p = logits.softmax(-1)
    torch.testing.assert_close(state.mean(), torch.einsum("abn,abnc->abc", p, centres), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(state.ess(), 1 / p.square().sum(-1), rtol=ROUNDING, atol=0)
    torch.testing.assert_close(state.log_weight(), logits.logsumexp(-1), rtol=ROUNDING, atol=0)
    assert torch.equal(state.count, torch.full((4, 5), 100))
    assert torch.equal(state.stderr(), torch.zeros(4, 5, 3, dtype=torch.float64))


def test_a_multiplicity_is_as_many_members():
    logits, centres, _ = members(5, 8)
    m = torch.tensor([1, 2, 3, 1, 5, 1, 1, 4])
    drawn = SoftmaxState.of(logits, centres, m.double().log().expand(5, -1))
    repeated = SoftmaxState.of(logits.repeat_interleave(m, 1), centres.repeat_interleave(m, 1))
    for name in ("mean", "ess", "log_weight"):
        torch.testing.assert_close(
            getattr(drawn, name)(), getattr(repeated, name)(), rtol=ROUNDING, atol=ROUNDING
        )
    assert (drawn.count == 8).all()


def test_centres_that_pixels_share_are_broadcast():
    logits, centres, log_m = members(4, 5, 30)
    for shared in (centres[0, 0], centres[:1, :1], centres[:, :1], centres[:1]):
        full = shared.expand(4, 5, 30, 3).contiguous()
        assert_same(SoftmaxState.of(logits, shared, log_m), SoftmaxState.of(logits, full, log_m))
    one = SoftmaxState.of(logits[0, 0], centres[0, 0], log_m[0, 0])
    assert_same(one, SoftmaxState.of(logits, centres, log_m)[0, 0])


def test_only_valid_members_count():
    logits, centres, log_m = members(6, 40)
    valid = torch.rand(6, 40, generator=torch.Generator().manual_seed(1)) < 0.5
    valid[0], valid[1] = False, True
    logits[2, ~valid[2]] = 1e4  # larger than all others, and to be ignored
    state = SoftmaxState.of(logits, centres, log_m, valid)
    assert torch.equal(state.count, valid.sum(1))
    assert state.max_logit[0] == -torch.inf
    assert state.weight[0] == 0
    assert state.mean()[0].isnan().all()
    for row in range(1, 6):
        mine = valid[row]
        assert_same(state[row], SoftmaxState.of(logits[row, mine], centres[row, mine], log_m[row, mine]))
    # A pixel without members takes those that come later.
    later = SoftmaxState.of(logits, centres, log_m)
    state.merge(later)
    assert_same(state[:1], later[:1])


def test_a_logit_of_minus_infinity_weighs_nothing():
    logits, centres, _ = members(3, 10)
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
    logits, centres, log_m = members(4, 5, 6, 30)
    state = SoftmaxState.of(logits, centres, log_m)
    flat = SoftmaxState.of(
        logits.movedim(1, -2).flatten(-2),
        centres.movedim(1, -3).flatten(-3, -2),
        log_m.movedim(1, -2).flatten(-2),
    )
    assert_same(state.reduce(1), flat)


def test_cat_and_getitem_take_grids_apart_and_together():
    logits, centres, log_m = members(7, 5, 30)
    state = SoftmaxState.of(logits, centres, log_m)
    assert_same(SoftmaxState.cat([state[:2], state[2:3], state[3:]]), state, 0)
    rows = torch.tensor([3, 0, 6])
    assert_same(state[rows, 1], SoftmaxState.of(logits[rows, 1], centres[rows, 1], log_m[rows, 1]))


def test_merge_at_some_pixels_touches_no_others():
    logits, centres, log_m = members(7, 5, 30)
    state = SoftmaxState.of(logits, centres, log_m)
    more = SoftmaxState.of(*members(2, 5, 30, seed=1))
    rows = torch.tensor([5, 1])
    expected = [state[r] if r not in (1, 5) else None for r in range(7)]
    both = [SoftmaxState.cat([state[r][None], more[i][None]]).reduce(0) for i, r in enumerate(rows.tolist())]
    expected[5], expected[1] = both
    expected = SoftmaxState.cat([e[None] for e in expected])
    state.merge(more, rows)
    assert_same(state, expected)


def test_no_members_are_refused():
    with pytest.raises(InputError, match="no members"):
        SoftmaxState.of(torch.zeros(3, 0), torch.zeros(3, 0, 1))


@pytest.fixture(scope="module")
def poisson():
    """Estimates from 20 000 Poisson samples of the same 400 members, and the truth."""
    logits, centres, _ = members(400, channels=2, spread=1.0)
    truth = SoftmaxState.of(logits, centres)
    generator = torch.Generator().manual_seed(1)
    # Heavy members are more likely to be there, as in priority sampling, but none for certain.
    probability = (0.5 * logits.exp() / logits.exp().mean()).clamp(0.1, 0.95)
    states = []
    for _ in range(20):
        kept = torch.rand(1000, 400, generator=generator, dtype=torch.float64) < probability
        log_m = (-probability.log()).expand(1000, -1)
        states.append(SoftmaxState.of(logits.expand(1000, -1), centres.expand(1000, -1, -1), log_m, kept))
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
    assert ((predicted / spread - 1).abs() < 0.05).all()


def test_one_in_three_normalised_errors_is_over_one(poisson):
    truth, drawn = poisson
    z = (drawn.mean() - truth.mean()) / drawn.stderr()
    # 31.7 % for a normal distribution; the ratio of two sums is only nearly normal.
    assert 0.29 < float((z.abs() > 1).double().mean()) < 0.36


def test_certain_members_add_no_error():
    logits, centres, log_m = members(3, 20, spread=2.0)
    log_m[:, :10] = 0
    certain = SoftmaxState.of(logits[:, :10], centres[:, :10], log_m[:, :10])
    assert torch.equal(certain.stderr(), torch.zeros(3, 3, dtype=torch.float64))
    assert torch.equal(certain.variance, torch.zeros(3, 7, dtype=torch.float64))
    both = SoftmaxState.of(logits, centres, log_m)
    # By its definition: D^-2 sum m (m - 1) w^2 (c - mu)^2.
    m, w = log_m.exp(), (logits - both.max_logit[:, None]).exp()
    terms = (m * (m - 1) * w**2)[..., None] * (centres - both.mean()[:, None]) ** 2
    expected = terms.sum(1).sqrt() / both.weight[:, None]
    # The moments cancel where one member dominates: the root of a float64 rounding, 1e-8, is what is left.
    torch.testing.assert_close(both.stderr(), expected, rtol=1e-6, atol=1e-8)
    assert (expected > 1e-4).any()


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
    assert all(f.dtype == torch.float64 for name, f in vars(state).items() if name != "count")
