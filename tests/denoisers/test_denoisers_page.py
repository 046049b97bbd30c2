"""The examples of docs/denoisers.md run, in Python and on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from patchindex_cli import main

import patchindex as pi
from patchindex.denoisers.registry import DENOISERS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "denoisers.md").read_text()


@pytest.fixture
def names(monkeypatch):
    """Run all Python blocks of the page; return their variables."""
    monkeypatch.chdir(ROOT)
    found = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, found)
    yield found
    DENOISERS.pop("pixelwise", None)


def test_the_own_denoiser_is_the_diagonal_of_the_gaussian(names):
    pixels = names["images"].read(slice(0, 300))[..., 0] / 127.5 - 1
    x = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    m = pi.denoiser("pixelwise", names["images"], noise=lambda t: t)
    y, sigma2 = x[0, 0].numpy() / 0.5**0.5, 1.0
    expected = pixels.mean(0) + pixels.var(0) / (pixels.var(0) + sigma2) * (y - pixels.mean(0))
    np.testing.assert_allclose(m.posterior_mean(x, 0.5).mean[0, 0], expected, rtol=0, atol=1e-6)
    assert names["drawn"].images.shape == (4, 1, 28, 28)
    assert names["drawn"].settings["floor"] == 0.01


def test_the_own_denoiser_works_on_the_command_line(names, tmp_path):
    pi.build_index(names["images"], tmp_path / "s.zarr", machine="IS")
    out = tmp_path / "out"
    args = ["sample", str(tmp_path / "s.zarr"), "-n", "2", "--steps", "3", "-o", str(out)]
    result = CliRunner().invoke(main, [*args, "--machine", "pixelwise:floor=0.02"])
    assert result.exit_code == 0, result.output
    assert json.loads((out / "samples.json").read_text())["settings"]["floor"] == 0.02


def test_the_page_names_all_denoisers(names):
    rows = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    written = {name for row in rows for name in re.findall(r"`([\w-]+)", row)}
    assert DENOISERS.keys() - {"pixelwise"} <= written
