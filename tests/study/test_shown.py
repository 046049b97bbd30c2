"""Results print their main rows."""

from __future__ import annotations

import patchindex as pi
from patchindex.study import Study, memorisation
from patchindex.study.shown import ShownRows


class Result(ShownRows):
    def summary(self):
        return [{"name": "a<b", "r": 0.123456, "n": 10}, {"name": "c", "r": None, "n": 7}]


def test_a_result_prints_a_line_per_row():
    assert str(Result()).splitlines() == ["name       r   n", " a<b  0.1235  10", "   c           7"]


def test_a_notebook_shows_a_table_with_escaped_text():
    shown = Result()._repr_html_()
    assert shown.count("<tr>") == 3
    assert "<td>a&lt;b</td><td>0.1235</td><td>10</td>" in shown
    assert "<td>c</td><td></td><td>7</td>" in shown


def test_a_study_prints_a_row_per_estimator(real_images):
    images, _ = real_images(12, 8)
    exact = pi.ScoreMachine(images, machine="LS", locality=3)
    study = pi.study.compare({"exact again": exact}, n=1, steps=3)
    assert isinstance(study, Study)
    assert len(str(study).splitlines()) == 1 + len(study.summary())
    assert "exact again" in str(study)


def test_memorisation_prints_a_row_per_scale_and_time(real_images):
    images, _ = real_images(12, 8)
    found = memorisation(images, machine="LS", scales=(3, 5), times=(0.3,), n=2, pixels=4)
    assert len(str(found).splitlines()) == 3


def test_no_rows_print_nothing():
    class Empty(ShownRows):
        def summary(self):
            return []

    assert str(Empty()) == ""
    assert "<td>" not in Empty()._repr_html_()
