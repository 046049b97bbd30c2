"""How tests run a command, and what they run it on."""

from functools import cache

import numpy as np
from click.testing import CliRunner
from patchindex_cli import main

DATA = "data/fashion_mnist_6k.npz"


def run(*args, code=0):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


def refused(*args, code=2):
    """Run a command that ends with one line, and return that."""
    result = run(*args, code=code)
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


@cache
def fashion_images():
    """Return images and labels."""
    with np.load(DATA) as data:
        return data["images"], data["labels"].astype(np.int64)


def small_store(tmp_path_factory):
    """Return a store, built once a session: tests leave it as it is. Its source is beside it, called .npz."""
    path = tmp_path_factory.getbasetemp() / "cli-store.zarr"
    if not path.exists():
        images, labels = fashion_images()
        np.savez(path.with_suffix(".npz"), images=images[:40], labels=labels[:40])
        run("build", path.with_suffix(".npz"), "-o", path, "--locality", "3,3,5,7", "--threads", 1)
    return path
