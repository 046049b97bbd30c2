"""A small store that the commands are tried on; tests leave it as it is."""

import numpy as np
import pytest
from commands import DATA, run


@pytest.fixture(scope="session")
def fashion():
    with np.load(DATA) as data:
        return data["images"], data["labels"].astype(np.int64)


@pytest.fixture(scope="session")
def store(tmp_path_factory, fashion):
    path = tmp_path_factory.mktemp("cli") / "store.zarr"
    images, labels = fashion
    np.savez(path.with_suffix(".npz"), images=images[:40], labels=labels[:40])
    run("build", path.with_suffix(".npz"), "-o", path, "--locality", "3,3,5,7", "--threads", 1)
    return path
