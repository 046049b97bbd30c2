"""The examples of docs/samplers.md run, and its tables have every name."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from patchindex.sampling import SAMPLERS, SPACINGS
from patchindex.schedules import NOISE_SCHEDULES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "samplers.md").read_text()


def test_the_examples_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    found: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, found)
    assert found["drawn"].images.shape == found["varied"].images.shape == (2, 1, 16, 16)
    left = found["clean"][..., :8]
    np.testing.assert_array_equal(found["completed"].images[..., :8], left.expand(2, -1, -1, -1))
    assert found["mean"].abs().max() <= 1


def test_the_tables_have_every_sampler_spacing_and_noise_schedule():
    for name in (*SAMPLERS, *SPACINGS, *NOISE_SCHEDULES):
        assert f"\n| `{name}` |" in PAGE
