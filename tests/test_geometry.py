"""Geometry: which patches are compared, against the definition by enumeration."""

from __future__ import annotations

from itertools import product

import brute
import numpy as np
import pytest
import torch

from patchindex.errors import InputError
from patchindex.geometry import Geometry

SIZES = ((7, 7), (6, 9))
CASES = [
    (name, k, size)
    for name, k, size in product(brute.MACHINES, (1, 3, 5, 7, 11, 19), SIZES)
    if not (name == "ELS" and k > min(size))
]


def geometry_of(name, k, size):
    return Geometry.of(k=k, size=size, **brute.settings_of(name))


def pairs_by_definition(name, k, size):
    """All (query, training) pairs of positions, each a (y, x)."""
    k = 1 if name == "IS" else k
    queries = list(product(*map(range, size)))
    train = brute.train_positions(name, k, *size)
    classes = {p: brute.position_class(name, k, *p, *size) for p in queries}
    return sorted((q, p) for q in queries for p in train if classes[q] == classes[p])


@pytest.mark.parametrize(("name", "k", "size"), CASES)
def test_offsets_enumerate_every_pair_once(name, k, size):
    g = geometry_of(name, k, size)

    def along(axis):
        return [(int(q), o.train.start + i) for o in axis.offsets for i, q in enumerate(o.query)]

    found = sorted(((qy, qx), (ty, tx)) for qy, ty in along(g.y) for qx, tx in along(g.x))
    assert found == pairs_by_definition(name, k, size)


@pytest.mark.parametrize(("name", "k", "size"), CASES)
def test_ranges_are_the_training_positions_of_each_pixel(name, k, size):
    g = geometry_of(name, k, size)
    queries = list(product(*map(range, size)))
    found = [
        ((qy, qx), train)
        for qy, qx in queries
        for train in product(range(*g.y.ranges[qy]), range(*g.x.ranges[qx]))
    ]
    assert found == pairs_by_definition(name, k, size)


@pytest.mark.parametrize(("name", "k", "size"), CASES)
def test_offset_is_the_difference_of_the_positions(name, k, size):
    g = geometry_of(name, k, size)
    for axis in (g.y, g.x):
        for o in axis.offsets:
            train = np.arange(o.train.start, o.train.stop)
            assert len(train) == len(o.query)
            difference = train - o.query - o.offset
            assert (difference % axis.size == 0).all() if axis.circular else (difference == 0).all()
            assert len(set(o.query.tolist())) == len(o.query)  # the scan writes to each query once


@pytest.mark.parametrize(("name", "k", "size"), CASES)
def test_slots_are_the_pairs_of_each_position(name, k, size):
    g = geometry_of(name, k, size)
    for axis in (g.y, g.x):
        query = np.concatenate([o.query for o in axis.offsets])
        for position, row in enumerate(axis.slots):
            real = row[row < len(query)]
            assert (row[len(real) :] == len(query)).all()  # padded at the end
            assert sorted(real.tolist()) == np.flatnonzero(query == position).tolist()


@pytest.mark.parametrize(("name", "k", "size"), CASES)
def test_position_classes_follow_their_definition(name, k, size):
    g = geometry_of(name, k, size)
    named = {}
    for y, x in product(*map(range, size)):
        named.setdefault(brute.position_class(name, g.k, y, x, *size), set()).add(int(g.query_classes[y, x]))
    assert all(len(numbers) == 1 for numbers in named.values())
    numbers = [numbers.pop() for numbers in named.values()]
    assert sorted(numbers) == list(range(g.n_classes))
    assert g.query_classes.shape == size
    positions = brute.train_positions(name, g.k, *size)
    assert g.train_classes.tolist() == [g.query_classes[p] for p in positions]
    assert g.is_exact == (name in ("IS", "LS"))


@pytest.mark.parametrize(("name", "k", "size"), CASES)
def test_patches_per_image_and_position(name, k, size):
    g = geometry_of(name, k, size)
    positions = brute.train_positions(name, g.k, *size)
    assert g.patches_per_image == len(positions)
    ids = np.arange(3 * len(positions))
    image, y, x = g.position(ids)
    assert list(zip(image.tolist(), y.tolist(), x.tolist(), strict=True)) == [
        (i, *p) for i in range(3) for p in positions
    ]
    for found, expected in zip(g.position(torch.from_numpy(ids)), (image, y, x), strict=True):
        assert isinstance(found, torch.Tensor)
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(("name", "k", "size"), CASES)
def test_window_counts_the_pixels_that_a_window_covers(name, k, size):
    g = geometry_of(name, k, size)
    padding = {"ELS": "valid", "ELS-wrapped": "circular"}.get(name, "zeros")
    h, w = size
    # Each pixel of this image is a channel of its own, so a window says which pixels it covers.
    image = np.eye(h * w).reshape(h, w, h * w)
    for y, x in brute.train_positions(name, g.k, *size):
        covered = brute.window(image, y, x, g.k, padding).reshape(-1, h, w).sum(0)
        np.testing.assert_array_equal(np.outer(g.y.window[y], g.x.window[x]), covered)
    outside = set(range(h)) - {y for y, _ in brute.train_positions(name, g.k, *size)}
    assert not g.y.window[sorted(outside)].any()


def test_numbers_of_patches_and_classes():
    assert Geometry.of("ELS", 7, (32, 32)).patches_per_image == 26 * 26
    assert Geometry.of("ELS", 7, (32, 32), "wrapped").patches_per_image == 32 * 32
    assert Geometry.of("bbELS", 7, (32, 32)).patches_per_image == 32 * 32
    assert Geometry.of("ELS", 7, (32, 32)).n_classes == 1
    assert Geometry.of("bbELS", 7, (32, 32)).n_classes == 7 * 7  # 3 at each border, and the inside
    assert Geometry.of("LS", 7, (32, 32)).n_classes == 32 * 32
    assert Geometry.of("bbELS", 65, (32, 32)).n_classes == 32 * 32


def test_is_needs_no_scale_and_sees_the_whole_image():
    g = Geometry.of("IS", None, (6, 9))
    assert g == Geometry.of("IS", 4, (6, 9))
    assert g.y.window.all()
    assert g.x.window.all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ELS", 4, (8, 8)), ("odd", "4", "locality scale")),
        (("LS", 0, (8, 8)), ("odd", "0")),
        (("LS", -3, (8, 8)), ("odd", "-3")),
        (("LS", 2.5, (8, 8)), ("odd", "2.5")),
        (("LS", True, (8, 8)), ("odd", "True")),
        (("bbELS", None, (8, 8)), ("odd", "None")),
        (("ELS", 9, (8, 12)), ("k = 9", "8 x 12", "up to 7")),
        (("els", 3, (8, 8)), ("unknown machine", "'els'", "IS, LS, ELS, bbELS")),
        (("ELS", 3, (8, 8), "circular"), ("train_windows", "'circular'", "valid or wrapped")),
        (("LS", 3, (8, 8), "wrapped"), ("train_windows", "LS")),
        (("bbELS", 3, (8, 8), "wrapped"), ("train_windows", "bbELS")),
    ],
)
def test_invalid_settings_are_refused(arguments, words):
    with pytest.raises(InputError) as caught:
        Geometry.of(*arguments)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(("name", "size"), [("ELS-wrapped", (8, 8)), ("bbELS", (8, 8)), ("LS", (8, 8))])
def test_only_valid_windows_have_to_fit(name, size):
    assert geometry_of(name, 9, size).k == 9
    assert Geometry.of("ELS", 7, (8, 8)).patches_per_image == 4
    assert Geometry.of("ELS", 7, (7, 7)).patches_per_image == 1
