"""The expected time of an image for each tolerance: the sum over steps of what the operating curves say."""

from __future__ import annotations

import pytest

import patchindex as pi
from patchindex.errors import InputError
from patchindex.estimators.curve import MOVES, NearPoint, OperatingCurve, TopPoint
from patchindex.schedules import cosine
from patchindex.study.cost_of_tolerances import cost_of_tolerances


@pytest.fixture
def tuned(real_images, tmp_path):
    """A store with a schedule of two scales, and curves that say that near fields are cheap at k = 3."""
    images, _ = real_images(20, (12, 10))
    locality = pi.LocalitySchedule.of([3, 3, 5])
    store = pi.build_index(images, tmp_path / "s.zarr", scales=(3, 5), locality=locality)
    for k, variances in ((3, (1e-8, 1e-7, 1e-6)), (5, (10.0, 10.0, 10.0))):
        near = NearPoint(0.3, 16, 32, 4e-5, 2e-5, variances, (0.0,) * len(MOVES))
        curve = OperatingCurve(20, 8e-4, 1e-3, 2e-2, 0.01, (near,), (TopPoint(0.3, 16, 32, 2e-4, 0.9),))
        store.scale(k).save_curve(curve.as_dict())
    return pi.open_index(store.path)


def test_a_larger_tolerance_costs_less_and_exact_scores_cost_the_same(tuned):
    found = cost_of_tolerances(tuned, (0.001, 0.01, 0.1))
    assert [each.tolerance for each in found] == [0.001, 0.01, 0.1]
    assert [each.exact for each in found] == pytest.approx([19 * 120 * 8e-4] * 3)
    assert found[0].auto > found[1].auto >= found[2].auto
    # Nothing is better than exact scores at k = 5, and each of the other steps takes a near field.
    fives = sum(tuned.locality.k(cosine(i / 20)) == 5 for i in range(1, 20))
    assert 0 < fives < 19
    least = 120 * (fives * 8e-4 + (19 - fives) * 3e-5)
    assert least < found[2].auto < least + 120 * 19 * 2e-5
    assert found[0].auto < found[0].exact


def test_fewer_steps_take_less_time(tuned):
    (ten,), (twenty,) = (cost_of_tolerances(tuned, [0.01], steps) for steps in (10, 20))
    assert ten.exact == pytest.approx(9 / 19 * twenty.exact)


@pytest.mark.parametrize("tolerance", [0, 1e200])
def test_a_tolerance_out_of_range_is_refused(tuned, tolerance):
    with pytest.raises(InputError, match="tolerance: must be a number above 0 and at most 2"):
        cost_of_tolerances(tuned, [0.01, tolerance])


def test_one_grid_point_is_refused(tuned):
    with pytest.raises(InputError, match="steps: must be at least 2"):
        cost_of_tolerances(tuned, [0.01], steps=1)


def test_a_store_that_says_too_little_has_no_costs(tuned, real_images, tmp_path):
    (tuned.path / "scales" / "k005" / "operating_curve.json").unlink()
    assert cost_of_tolerances(pi.open_index(tuned.path)) == []
    bare = pi.build_index(real_images(20, 12)[0], tmp_path / "bare.zarr", scales=[3])
    assert cost_of_tolerances(bare) == []
