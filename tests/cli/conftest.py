import shutil

import numpy as np
import pytest
from commands import DATA, run


@pytest.fixture(autouse=True)
def no_progress(monkeypatch):
    """Print no progress, also where kernels are compiled for a minute."""
    monkeypatch.setattr("patchindex_cli.progress.SECONDS_PER_LINE", 3600.0)


@pytest.fixture(scope="session")
def fashion():
    """Images and labels."""
    with np.load(DATA) as data:
        return data["images"], data["labels"].astype(np.int64)


@pytest.fixture(scope="session")
def source(fashion, tmp_path_factory):
    """A file of forty images and their labels."""
    path = tmp_path_factory.mktemp("source") / "forty.npz"
    np.savez(path, images=fashion[0][:40], labels=fashion[1][:40])
    return path


@pytest.fixture(scope="session")
def store(source, tmp_path_factory):
    """A tuned store of the forty images, which tests do not change."""
    path = tmp_path_factory.mktemp("store") / "forty.zarr"
    run("build", source, "-o", path, "--locality", "3,3,5,7", "--tune", "--threads", 1)
    return path


@pytest.fixture(scope="session")
def small_store(fashion, tmp_path_factory):
    """A store of forty images of 12 x 12, not tuned, which tests do not change."""
    folder = tmp_path_factory.mktemp("small")
    np.savez(folder / "small.npz", images=fashion[0][:40, 8:20, 8:20], labels=fashion[1][:40])
    args = ("--locality", "3,3,5,7", "--no-tune", "--threads", 1)
    run("build", folder / "small.npz", "-o", folder / "small.zarr", *args)
    return folder / "small.zarr"


@pytest.fixture
def copied(store, tmp_path):
    return shutil.copytree(store, tmp_path / "store.zarr")
