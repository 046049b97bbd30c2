"""Drawing blocks and keeping codes: probabilities, priorities, and that nothing depends on the company."""

from __future__ import annotations

import numpy as np
import pytest

from patchindex.index.codes import CODES, NEVER, Codes, Queries
from patchindex.index.retrieval import Kept, Visits, choose_blocks, scan_blocks
from patchindex.simd import BLOCK, LANES

RNG = np.random.default_rng


def keys_of(n, seed=0):
    return RNG(seed).integers(0, 2**32, (n, 2), np.uint32)


def chosen(weights, blocks, budget, floor, keys, capacity=None):
    """Visits of queries whose lists have these log2 weights, (queries, lists)."""
    n, lists = weights.shape
    padded = -(-lists // BLOCK) * BLOCK
    table = np.full((n, padded), NEVER, np.float32)
    table[:, :lists] = weights
    counts = np.zeros(padded, np.float32)
    counts[:lists] = blocks
    first = np.concatenate([[0], np.cumsum(blocks)])
    capacity = capacity or int(first[-1])
    visits = Visits(
        np.zeros((n, capacity), np.int64),
        np.zeros((n, capacity), np.int32),
        np.zeros((n, capacity), np.float32),
        np.zeros(n, np.int64),
    )
    room = np.empty((2, padded), np.float32)
    choose_blocks(table, counts, first, float(budget), floor, keys, room, visits)
    return visits, first


def test_blocks_come_with_the_probability_that_goes_with_them():
    lists, n = 37, 4000
    rng = RNG(1)
    blocks = rng.integers(0, 9, lists)
    weights = rng.normal(0, 3, lists).astype(np.float32)
    visits, first = chosen(np.tile(weights, (n, 1)), blocks, 30, 0.1, keys_of(n))
    found = np.zeros(first[-1])
    expected = np.zeros(first[-1])
    for q in range(n):
        mine = visits.block[q, : visits.drawn[q]]
        assert len(set(mine)) == len(mine)
        found[mine] += 1
        expected[mine] = 2.0 ** visits.log_p[q, : visits.drawn[q]]
        lists_of = np.searchsorted(first, mine, "right") - 1
        np.testing.assert_array_equal(lists_of, visits.list[q, : visits.drawn[q]])
    # Five standard deviations of a binomial share.
    assert (np.abs(found / n - expected) <= 5 * np.sqrt(expected * (1 - expected) / n) + 1e-9).all()
    # What is drawn for certain does not need its even share, which is lost.
    assert 0.98 * 30 < expected.sum() < 30.001
    # min(1, w / tau + e), for one tau and one e.
    per_block = np.repeat(2.0**weights / np.maximum(blocks, 1), blocks)
    even = 0.1 * 30 / first[-1]
    tau = (per_block / (expected - even))[expected < 1]
    np.testing.assert_allclose(tau, tau[0], rtol=1e-3)
    np.testing.assert_allclose(expected, np.minimum(1, per_block / tau[0] + even), rtol=1e-3)


def test_blocks_of_a_list_are_drawn_independently():
    """Pairs of blocks: as often together as independent draws would be."""
    weights = np.tile(np.array([0.0, 1.0], np.float32), (20_000, 1))
    visits, _ = chosen(weights, np.array([5, 1]), 2, 0.0, keys_of(20_000))
    there = np.zeros((20_000, 5), bool)
    for q in range(len(there)):
        mine = visits.block[q, : visits.drawn[q]]
        there[q, mine[mine < 5]] = True
    together = there.T.astype(float) @ there / len(there)
    # Of two blocks one is the heavy list's, so p = 1 / 5; five standard deviations of 0.2 and 0.04.
    np.testing.assert_allclose(np.diag(together), 0.2, atol=5 * 0.0028)
    off = together[~np.eye(5, dtype=bool)]
    np.testing.assert_allclose(off, 0.04, atol=5 * 0.0014)


@pytest.mark.parametrize("budget", [40, 400, 4000])
def test_lists_of_thousands_of_blocks(budget):
    """As many of them as expected, each once; where all patches are alike there are such lists."""
    n, blocks = 200, np.array([9000, 3, 500])
    visits, first = chosen(np.zeros((n, 3), np.float32), blocks, budget, 0.05, keys_of(n), capacity=9503)
    found = np.zeros(first[-1])
    for q in range(n):
        mine = visits.block[q, : visits.drawn[q]]
        assert len(set(mine)) == len(mine)
        found[mine] += 1
    # One block of the heaviest list is certain; five standard deviations of the mean count.
    assert visits.drawn.mean() == pytest.approx(budget, abs=5 * np.sqrt(budget / n) + 0.06 * budget)
    per_block = [found[lo:hi].mean() / n for lo, hi in ((0, 9000), (9003, 9503))]
    each = [2.0 ** visits.log_p[0, visits.list[0] == c].min() for c in (0, 2)]
    np.testing.assert_allclose(per_block[0], each[0], rtol=0.1)
    assert found[:9000].std() < 2 * np.sqrt(n * each[0]) + 1


def test_a_budget_for_all_takes_all():
    blocks = np.array([3, 0, 2])
    visits, _ = chosen(RNG(0).normal(0, 30, (10, 3)).astype(np.float32), blocks, 5, 0.05, keys_of(10))
    assert (visits.drawn == 5).all()
    assert (np.sort(visits.block, 1) == np.arange(5)).all()
    assert (visits.log_p == 0).all()


@pytest.mark.parametrize("spread", [0, 200])
def test_extreme_weights(spread):
    """All lists alike, or all weight in one of them."""
    weights = np.linspace(-spread, 0, 100, dtype=np.float32)[None]
    visits, _ = chosen(np.tile(weights, (50, 1)), np.full(100, 4), 40, 0.05, keys_of(50))
    assert np.isfinite(visits.log_p[:, :1]).all()
    # The heaviest list is always there: weights that are 2^-200 of the largest are no numbers any more.
    heaviest = 99 if spread else 0
    assert all((visits.list[q, : visits.drawn[q]] == heaviest).any() for q in range(50))
    assert all(len(set(visits.block[q, : visits.drawn[q]])) == visits.drawn[q] for q in range(50))
    if spread == 0:
        assert visits.drawn.mean() == pytest.approx(40 + 0.9, abs=5 * np.sqrt(36 / 50))


def test_too_many_for_the_room_are_counted():
    visits, _ = chosen(np.zeros((3, 10), np.float32), np.full(10, 4), 40, 0.05, keys_of(3), capacity=7)
    assert (visits.drawn == 40).all()


@pytest.fixture(params=[8, 21, 48])
def lists(request):
    """Codes of seven lists, the last one at the end of the file, and what they stand for."""
    dims, rng = request.param, RNG(2)
    sizes = np.array([150, 64, 1, 0, 200, 63, 130])
    first = np.concatenate([[0], np.cumsum(sizes)])
    values = rng.integers(0, 256, (first[-1], dims), np.uint8)
    file = np.concatenate([np.zeros(37, np.uint8), values.reshape(-1)])
    low, step = rng.normal(0, 1, dims), rng.uniform(0.001, 0.01, dims)
    pad = (0, -dims % LANES)
    codes = Codes(
        file,
        37 + first[:-1] * dims,
        first[:-1],
        sizes,
        np.pad(low, pad).astype(np.float32),
        np.pad(step, pad).astype(np.float32),
        dims,
    )
    return codes, low + (values + 0.5) * step


def everything(codes, n):
    """Visits of all blocks by all queries."""
    blocks = -(-codes.size // CODES)
    first = np.concatenate([[0], np.cumsum(blocks)])
    total = int(first[-1])
    visits = Visits(
        np.tile(np.arange(total), (n, 1)),
        np.tile(np.repeat(np.arange(len(blocks), dtype=np.int32), blocks), (n, 1)),
        np.tile(RNG(3).uniform(-3, 0, total).astype(np.float32), (n, 1)),
        np.full(n, total),
    )
    return visits, first


def scanned(codes, first, z, keys, visits, samples, room=2):
    shape = (len(z), room * samples)
    kept = Kept(
        priority=np.empty(shape, np.float32),
        weight=np.empty(shape, np.float32),
        code=np.empty(shape, np.int64),
        visit=np.empty(shape, np.int32),
        held=np.zeros(len(z), np.int64),
        threshold=np.full(len(z), NEVER, np.float32),
        scanned=np.zeros(len(z), np.int64),
    )
    scan_blocks(codes, first, Queries.of(codes, z, 0.7), keys, visits, samples, kept)
    return kept


def test_weights_are_those_of_the_decoded_codes(lists):
    codes, values = lists
    z = RNG(4).normal(0, 1, (5, codes.dims)).astype(np.float32)
    visits, first = everything(codes, 5)
    kept = scanned(codes, first, z, keys_of(5), visits, 1000)
    total = len(values)
    assert (kept.held == total).all()
    assert (kept.scanned == total).all()
    assert (kept.threshold == NEVER).all()
    for q in range(5):
        code = kept.code[q, :total]
        np.testing.assert_array_equal(np.sort(code), np.arange(total))
        log_p = visits.log_p[q, kept.visit[q, :total]]
        c = visits.list[q, kept.visit[q, :total]]
        assert (codes.base[c] <= code).all()
        assert (code < codes.base[c] + codes.size[c]).all()
        expected = values[code] @ z[q] - 0.7 * (values[code] ** 2).sum(1) - log_p
        # Rounded to 16 bits of the largest term: up to 25 here, of squares of up to 128 steps.
        np.testing.assert_allclose(kept.weight[q, :total], expected, rtol=1e-5, atol=2e-3)
        assert (kept.priority[q, :total] >= kept.weight[q, :total]).all()


@pytest.mark.parametrize("room", [2, 3, 5, 8, 20, 28, 40])
def test_the_highest_priorities_are_kept(lists, room):
    """However small the room in which they are collected, and wherever it is full."""
    codes, _ = lists
    z = RNG(4).normal(0, 1, (60, codes.dims)).astype(np.float32)
    visits, first = everything(codes, 60)
    whole = scanned(codes, first, z, keys_of(60), visits, 1000)
    kept = scanned(codes, first, z, keys_of(60), visits, 20, room)
    for q in range(60):
        order = np.argsort(-whole.priority[q, : whole.held[q]])
        assert kept.held[q] == 20
        np.testing.assert_array_equal(np.sort(kept.code[q, :20]), np.sort(whole.code[q, order[:20]]))
        assert kept.threshold[q] == whole.priority[q, order[20]]
        assert (np.diff(kept.visit[q, :20]) >= 0).all()  # those of a visit stay together


def test_uniforms_are_uniform(lists):
    """Over many queries: priority less weight is -log2 u."""
    codes, _ = lists
    n = 300
    visits, first = everything(codes, n)
    kept = scanned(codes, first, np.zeros((n, codes.dims), np.float32), keys_of(n), visits, 1000)
    total = int(kept.held[0])
    u = 2.0 ** (kept.weight[:, :total] - kept.priority[:, :total])
    histogram = np.histogram(u, 50, (0, 1))[0]
    expected = u.size / 50
    assert ((histogram - expected) ** 2 / expected).sum() < 49 + 5 * np.sqrt(2 * 49)
    # Neighbouring codes, and the same code for neighbouring queries, have nothing to do with each other.
    limit = 5 / np.sqrt(u.size)
    assert abs(np.corrcoef(u[:, 1:].ravel(), u[:, :-1].ravel())[0, 1]) < limit
    assert abs(np.corrcoef(u[1:].ravel(), u[:-1].ravel())[0, 1]) < limit


def test_a_query_alone_keeps_what_it_keeps_in_company(lists):
    codes, _ = lists
    z, keys = RNG(4).normal(0, 1, (9, codes.dims)).astype(np.float32), keys_of(9)
    visits, first = everything(codes, 9)
    together = scanned(codes, first, z, keys, visits, 30)
    for q in range(9):
        one = slice(q, q + 1)
        alone = scanned(codes, first, z[one], keys[one], Visits(*(v[one] for v in visits)), 30)
        for name in ("code", "weight", "priority"):
            np.testing.assert_array_equal(getattr(alone, name)[0, :30], getattr(together, name)[q, :30])
        assert alone.threshold[0] == together.threshold[q]
