"""The data set in data/ is the one that its README describes and its script makes."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from patchindex.images import KNOWN_SETS, open_images
from patchindex.networks import open_run

DATA = Path(__file__).parents[2] / "data"


def test_the_file_is_that_of_the_readme():
    content = (DATA / "fashion_mnist_6k.npz").read_bytes()
    assert len(content) <= 3_000_000
    assert hashlib.sha256(content).hexdigest() in (DATA / "README.md").read_text()
    with np.load(DATA / "fashion_mnist_6k.npz") as archive:
        assert sorted(archive.files) == ["images", "labels"]
        assert np.bincount(archive["labels"]).tolist() == [600] * 10


@pytest.mark.slow
@pytest.mark.skipif(
    not KNOWN_SETS["fashion-mnist"][0].is_file(), reason="dataset-fashion-mnist is not installed"
)
def test_the_script_makes_the_same_arrays_and_the_same_bytes_twice(tmp_path):
    made = []
    for path in (tmp_path / "1.npz", tmp_path / "2.npz"):
        subprocess.run([sys.executable, DATA / "make_fashion_mnist_6k.py", "--out", path], check=True)
        made.append(path.read_bytes())
    assert made[0] == made[1]
    stored, again = open_images(DATA / "fashion_mnist_6k.npz"), open_images(tmp_path / "1.npz")
    np.testing.assert_array_equal(stored[:], again[:])
    np.testing.assert_array_equal(stored.labels, again.labels)


def test_the_network_is_that_of_the_readme_and_knows_its_images():
    folder = DATA / "fashion_resnet"
    assert (folder / "weights.safetensors").stat().st_size <= 1_500_000
    network = open_run(folder)
    network.check_images(open_images(DATA / "fashion_mnist_6k.npz"))
    readme, settings = (DATA / "README.md").read_text(), network.run["settings"]
    command = readme.split("patchindex train ", 1)[1].split("\n\n", 1)[0]
    for option in ("lr", "lr_decay", "steps", "seed"):
        value = command.split(f"--{option.replace('_', '-')} ", 1)[1].split()[0]
        assert float(value) == settings[option]
    losses = np.genfromtxt(folder / "loss.csv", delimiter=",", names=True)["loss"]
    assert losses[-5:].mean() < 0.5 * losses[:5].mean()
