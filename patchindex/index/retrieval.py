"""Two-level priority sampling over inverted lists: the compiled part.

Lists are cut into blocks of `CODES` codes. A block is drawn with a probability that follows from an estimate
of its list's weight (`choose_blocks`); the codes of the blocks drawn are scanned, and of each query's codes
those of highest priority are kept (`scan_blocks`; Duffield, Lund and Thorup, J. ACM 2007):

    priority = 2^g / u,    g = log2 of the code's weight over the probability of its block

with u uniform in (0, 1), a hash of the query's key and the code's place in the index. So what is kept depends
on neither the order in which blocks are scanned nor on what else is scanned with them.

All logarithms are to base 2. Codes lie in the file of FAISS, list by list. Blocks are visited in that order,
and a block is decoded once for all queries that drew it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from patchindex.index.codes import CODES, NEVER, STEPS, decode, nth_highest
from patchindex.simd import (
    BLOCK,
    LANES,
    compiled,
    exp2,
    inlined,
    load_block,
    load_lanes,
    splat_block,
    splat_lanes,
    store,
)
from patchindex.simd_codes import at_most, bits_below, lowest_bit, uniforms
from patchindex.simd_pairs import add_pairs, load_ints, no_ints, to_floats

__all__ = ["Kept", "Visits", "choose_blocks", "scan_blocks"]

FLOOR = np.float32(-100.0)  # weights are not below 2^FLOOR of the largest
MOST_EXPECTED = 30.0  # blocks of a list; the binomial distribution of more begins below what numbers can say
SALT = np.uint32(0x5BD1E995)  # so that lists and codes with the same number draw differently


class Visits(NamedTuple):
    """The blocks that queries drew: arrays of shape (queries, capacity), and how many each drew.

    Attributes
    ----------
    block : array of int64
        Number of the block among those of all lists.
    list : array of int32
    log_p : array of float32
        Logarithm of the probability with which it was drawn.
    drawn : array of int64, shape (queries,)
        More than the capacity means that some are missing.
    """

    block: np.ndarray
    list: np.ndarray
    log_p: np.ndarray
    drawn: np.ndarray


class Kept(NamedTuple):
    """The codes that queries keep: arrays of shape (queries, capacity), and values of shape (queries,).

    Attributes
    ----------
    priority, weight : array of float32
        Logarithms; `weight` is g, over the probability of the block.
    code : array of int64
        Number of the code among all codes of the index.
    visit : array of int32
        Which of the query's visits found it; those of a visit are neighbours.
    held : array of int64, shape (queries,)
    threshold : array of float32, shape (queries,)
        Codes with `weight` below it were kept with probability `2^(weight - threshold)`, others for certain.
    scanned : array of int64, shape (queries,)
        Codes whose weight was computed.
    """

    priority: np.ndarray
    weight: np.ndarray
    code: np.ndarray
    visit: np.ndarray
    held: np.ndarray
    threshold: np.ndarray
    scanned: np.ndarray


@njit(fastmath=True, inline="never")
def _capped(weights, blocks, tau):  # type: ignore[no-untyped-def]
    """Sum the weights of all blocks below tau, and count the blocks that are not."""
    below, above = np.float32(0), np.float32(0)
    for i in range(len(weights)):
        small = weights[i] < tau
        below += weights[i] * blocks[i] if small else np.float32(0)
        above += np.float32(0) if small else blocks[i]
    return below, above


@inlined
def _mixed(x):  # type: ignore[no-untyped-def]
    """Return a hash of a 64-bit number (splitmix64)."""
    x = np.uint64(x) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled
def choose_blocks(weights, blocks, first_block, budget, floor, keys, room, visits):  # type: ignore[no-untyped-def]
    """Draw blocks for each query.

    `weights` (queries, lists padded to BLOCK) are logarithms of the lists' weights and are overwritten;
    `blocks` (padded lists,) float32 and `first_block` (lists + 1,) say how many each list has, and their
    numbers; `keys` is (queries, 2) uint32; `room` is (2, padded lists) float32.

    All blocks of list c have probability `min(1, w_c / tau + e)`: `w_c` is the weight of a block, tau such
    that the first terms make `budget (1 - floor)` blocks, and e makes the rest evenly. One block of the
    heaviest list, any of them, is certain, so that there is always one.
    """
    n_lists = len(first_block) - 1
    total_blocks = first_block[n_lists]
    expected, draws = room
    room_for = visits.block.shape[1]
    for q in range(len(weights)):
        mine = weights[q]
        top, heaviest = NEVER, 0
        for i in range(n_lists):
            if blocks[i] > 0 and mine[i] > top:
                top, heaviest = mine[i], i
        for i in range(0, len(mine), LANES):
            store(mine, i, exp2(load_lanes(mine, i) - splat_lanes(top), FLOOR))
        for i in range(len(mine)):
            mine[i] = mine[i] / blocks[i] if blocks[i] > 0 else np.float32(0)
        wanted = budget * (1 - floor)
        if total_blocks > budget:
            tau, full = np.float32(3e38), np.float32(0)  # above all weights
            below, _ = _capped(mine, blocks, tau)
            for _ in range(64):
                lower = np.float32(below / (wanted - full))
                if not lower < tau:
                    break
                tau = lower
                below, full = _capped(mine, blocks, tau)
            even = np.float32(floor * budget / total_blocks)
            for i in range(len(mine)):
                p = min(mine[i] / tau + even, np.float32(1))
                mine[i] = p
                expected[i] = p * blocks[i] if p < 1 else np.float32(4e9) * blocks[i]
        else:
            for i in range(len(mine)):
                mine[i] = np.float32(1)
                expected[i] = np.float32(4e9) * blocks[i]
        expected[heaviest] = np.float32(4e9)  # looked at in any case
        key = (np.uint64(keys[q, 0]) << np.uint64(32)) | np.uint64(keys[q, 1])
        count = 0
        for start in range(0, len(mine), BLOCK):
            u = uniforms(np.uint32(start), keys[q, 0], keys[q, 1] ^ SALT)
            bits = bits_below(u, load_block(expected, start))
            if bits:
                store(draws, 0, u)
            while bits:
                i = lowest_bit(bits)
                bits &= bits - np.uint64(1)
                c = start + i
                n, p = np.int64(blocks[c]), np.float64(mine[c])
                certain = np.int64(-1)
                if c == heaviest and p < 1:
                    certain = np.int64(_mixed(key) % np.uint64(n))
                    visits.block[q, min(count, room_for - 1)] = first_block[c] + certain
                    visits.list[q, min(count, room_for - 1)] = c
                    visits.log_p[q, min(count, room_for - 1)] = 0
                    count += 1
                    n -= 1
                one_by_one = p < 1 and n * p > MOST_EXPECTED
                if p >= 1 or one_by_one:
                    drawn = np.int64(n)
                else:
                    # How many of n: tails of the binomial distribution, against the same number.
                    drawn = np.int64(0)
                    mass = (1 - p) ** n
                    tail = 1 - mass
                    while drawn < n and draws[i] < tail:
                        drawn += 1
                        mass *= (n - drawn + 1) / drawn * p / (1 - p)
                        tail -= mass
                log_p = np.float32(math.log2(p))
                begin = count
                for j in range(n - drawn, n):
                    # Which of them: Floyd's way to distinct numbers.
                    b = j
                    if one_by_one:
                        u = np.float64(_mixed(_mixed(key ^ np.uint64(c)) + np.uint64(j)) >> np.uint64(11))
                        if u * 2.0**-53 >= p:
                            continue
                    elif drawn < n:
                        b = int(_mixed(_mixed(key ^ np.uint64(c)) + np.uint64(j)) % np.uint64(j + 1))
                        for other in range(begin, min(count, room_for)):
                            if visits.block[q, other] == first_block[c] + b + int(0 <= certain <= b):
                                b = j
                                break
                    if count < room_for:
                        # Numbers of the others, where one of the list's blocks is certain.
                        visits.block[q, count] = first_block[c] + b + int(0 <= certain <= b)
                        visits.list[q, count] = c
                        visits.log_p[q, count] = log_p
                    count += 1
        visits.drawn[q] = count


@inlined
def _drop(kept, q):  # type: ignore[no-untyped-def]
    """Drop what a query holds that is not above its threshold."""
    n = 0
    for i in range(kept.held[q]):
        kept.priority[q, n] = kept.priority[q, i]
        kept.weight[q, n] = kept.weight[q, i]
        kept.code[q, n] = kept.code[q, i]
        kept.visit[q, n] = kept.visit[q, i]
        n += int(kept.priority[q, i] > kept.threshold[q])
    kept.held[q] = n


@compiled
def scan_blocks(codes, first_block, queries, keys, visits, samples, kept):  # type: ignore[no-untyped-def]
    """Scan the blocks that queries drew, and keep the `samples` codes of highest priority of each query.

    The score of a code is the logarithm of its weight, up to what is the same for all codes of a query.
    `kept` is empty: counts 0 and thresholds `NEVER`.
    """
    n_blocks = first_block[len(first_block) - 1]
    # Visits in the order of their blocks, by counting; those of a block in the order of queries.
    start = np.zeros(n_blocks + 1, np.int32)
    total = 0
    for q in range(len(queries.unit)):
        for v in range(visits.drawn[q]):
            start[visits.block[q, v] + 1] += 1
        total += visits.drawn[q]
    for b in range(n_blocks):
        start[b + 1] += start[b]
    query_of, visit_of = np.empty(total, np.int32), np.empty(total, np.int32)
    for q in range(len(queries.unit)):
        for v in range(visits.drawn[q]):
            at = start[visits.block[q, v]]
            query_of[at], visit_of[at] = q, v
            start[visits.block[q, v]] += 1
    pairs, capacity = len(codes.step) // 2, kept.priority.shape[1]
    raw = np.zeros(LANES * LANES, np.uint8)
    tile = np.zeros(pairs * CODES, np.int32)
    norms = np.zeros(CODES, np.float32)
    weights, draws = np.zeros(CODES, np.float32), np.zeros(CODES, np.float32)
    room, histogram = np.empty(capacity + 1, np.float32), np.zeros(STEPS, np.int32)
    block = -1
    for visit in range(total):
        q, v = query_of[visit], visit_of[visit]
        c, log_p = visits.list[q, v], visits.log_p[q, v]
        first = (visits.block[q, v] - first_block[c]) * CODES
        if visits.block[q, v] != block:
            block = visits.block[q, v]
            decode(codes, c, first, queries, raw, tile, norms)
        kept.scanned[q] += min(CODES, codes.size[c] - first)
        number = codes.base[c] + first
        for i in range(0, CODES, BLOCK):
            sums = no_ints()
            for j in range(2 * -(-codes.dims // 4)):
                sums = add_pairs(sums, load_ints(tile, j * CODES + i), queries.pairs[q * pairs + j])
            g = to_floats(sums) * splat_block(queries.unit[q]) + load_block(norms, i)
            g = g + splat_block(queries.constant[q] - log_p)
            u = uniforms(np.uint32(number + i), keys[q, 0], keys[q, 1])
            chance = exp2(at_most(g - splat_block(kept.threshold[q]), np.float32(1)), FLOOR)
            bits = bits_below(u, chance)
            if bits:
                store(weights, i, g)
                store(draws, i, u)
            while bits:
                j = i + lowest_bit(bits)
                bits &= bits - np.uint64(1)
                priority = weights[j] - np.float32(math.log2(draws[j]))
                if kept.held[q] == capacity:
                    kept.threshold[q] = nth_highest(kept.priority[q], kept.held[q], samples, room, histogram)
                    _drop(kept, q)
                if priority <= kept.threshold[q]:  # it has been raised since this block was compared
                    continue
                n = kept.held[q]
                kept.priority[q, n] = priority
                kept.weight[q, n] = weights[j]
                kept.code[q, n] = number + j
                kept.visit[q, n] = v
                kept.held[q] = n + 1
    for q in range(len(queries.unit)):
        if kept.held[q] > samples:
            kept.threshold[q] = nth_highest(kept.priority[q], kept.held[q], samples, room, histogram)
            _drop(kept, q)
