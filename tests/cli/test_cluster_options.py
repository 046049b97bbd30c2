"""`build` and `sample` with `--cluster`: a whole store, and the images that are drawn here."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from patchindex_cli import main

import patchindex as pi

pytest.importorskip("distributed")
# What distributed and its parts warn of among themselves; a warning of this package still fails a test.
pytestmark = pytest.mark.filterwarnings("ignore", "error::patchindex.errors.PatchIndexWarning")


@pytest.fixture(scope="module")
def saved(labelled, tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, images=labelled[0], labels=labelled[1])
    return path


def test_a_build_at_the_command_line(saved, tmp_path):
    command = ["build", str(saved), "-o", str(tmp_path / "s.zarr"), "--scales", "3", "--no-tune"]
    done = CliRunner().invoke(main, [*command, "--cluster", "local"])
    assert done.exit_code == 0, done.output
    assert pi.verify(tmp_path / "s.zarr").whole


@pytest.mark.parametrize("machine", ["ELS", "wiener"])
def test_a_sample_at_the_command_line(saved, tmp_path, machine):
    store = pi.build_index(saved, tmp_path / "s.zarr", locality=[3, 3, 5], threads=1).path
    command = ["sample", str(store), "-n", "3", "--steps", "4", "--batch-size", "2", "--machine", machine]
    for output, how in {"there": ["--cluster", "local"], "here": []}.items():
        done = CliRunner().invoke(
            main, [*command, "-o", str(tmp_path / output), "--save-trajectory", *how], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
    with (
        np.load(tmp_path / "there" / "samples.npz") as there,
        np.load(tmp_path / "here" / "samples.npz") as here,
    ):
        np.testing.assert_allclose(there["images"], here["images"], atol=1e-4)  # as `sample` promises
    files = [pi.sampling.TrajectoryFile(tmp_path / each / "trajectory.zarr") for each in ("there", "here")]
    paths = [file.read(range(3)) for file in files]
    np.testing.assert_allclose(paths[0].x, paths[1].x, atol=1e-4)
