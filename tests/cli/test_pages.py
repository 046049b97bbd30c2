"""The commands and the Python examples of the pages run, in order, on a few images."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from commands import run
from PIL import Image
from test_examples import ROOT

import patchindex as pi

PAGES = ["README.md", *(f"docs/{name}.md" for name in (
    "images", "schedules", "stores", "drawing", "networks", "command-line", "calibration", "denoisers",
    "estimators", "explain", "gpu", "limbs", "originality", "samplers", "theory",
))]  # fmt: skip
# Other machines, a data set that is not here, and a placeholder.
NOT_HERE = re.compile(r"s3://|tcp://|cuda|\bmps\b|celeba/|\bSTORE\b")
# What takes long: the same command, on less.
SMALLER = [
    (r"-n \d+", "-n 2"),
    (r"\bn ?= ?\d+", "n = 2"),
    (r"--image 3", "--image 1"),
    (r"--assume-images \d+", "--assume-images 1000"),
    (r"--resize 32", "--resize 20"),
    (r"--limit \d+", "--limit 12"),
    (r"--minutes [\d.]+", "--steps 2"),
    (r"--steps \d{3,}", "--steps 2"),
    (r"--network-steps \d+", "--network-steps 3"),
    (r"--channels \d+", "--channels 16 --layers 1"),
    (r"--widths [\d,]+", "--widths 16,16,16"),
    (r"--validation \d+", "--validation 4"),
    (r"minutes=\d+", "steps=2"),
    (r"steps=150", "steps=3"),
    (r'"widths": \(32, 64\)', '"widths": (16, 16)'),
    (r"draw_figures\(\d+\)", "draw_figures(20)"),
    (r'"cuda[^"]*"', '"cpu"'),
]
# `tests/denoisers`, `tests/sampling` and `tests/explain` run the Python of these pages.
RUN_ELSEWHERE = {f"docs/{name}.md" for name in ("denoisers", "samplers", "explain")}
FEW_STEPS = ("sample", "study", "compare", "calibrate", "train")
TRAINED = ("--conditional", "--channels", 16, "--layers", 1, "--steps", 2, "--threads", 1)


@pytest.fixture(scope="module")
def stand_ins(fashion, tmp_path_factory):
    """A folder with all files that the pages name, of a few small images each."""
    folder = tmp_path_factory.mktemp("pages")
    images, labels = fashion[0][:30], fashion[1][:30]
    colour = np.stack([np.roll(images, 9 * c, 0) for c in range(3)], -1)
    colour = np.pad(colour, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    (folder / "data").mkdir()
    np.savez(folder / "data" / "fashion_mnist_6k.npz", images=images, labels=labels)
    for name in ("mnist", "mnist_train", "more"):
        np.savez(folder / f"{name}.npz", images=images[::-1], labels=labels)
    np.savez(folder / "mnist_test.npz", images=fashion[0][100:130])
    for name in ("cifar10", "cifar10_train", "images"):
        np.savez(folder / f"{name}.npz", images=colour[:24], labels=np.arange(24) % 10)
    np.save(folder / "floats.npy", (colour[:8].transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32))
    with h5py.File(folder / "set.h5", "w") as file:
        file["train/images"] = images
    for i, image in enumerate(colour[:20]):
        path = folder / "photos" / ("cats", "dogs")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((40, 36)).save(path)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        schedule = ("--locality", "3,3,5,7", "--threads", 1)
        run("build", "data/fashion_mnist_6k.npz", "-o", "fashion.zarr", *schedule)
        run("build", "mnist.npz", "-o", "mnist.zarr", "--scales", "3", "--threads", 1)
        shutil.copytree("fashion.zarr", "moved.zarr")
        run("build", "photos", "-o", "photos.zarr", "--resize", 12, "--locality", "3,3", "--threads", 1)
        for name, source in (("run", "data/fashion_mnist_6k.npz"), ("run-on-mnist", "mnist.npz")):
            run("train", source, "-o", name, *TRAINED)
        shutil.copytree("run", "other-run")
        for name, output in (("sample", "samples"), ("study", "study")):
            run(name, "fashion.zarr", "-o", output, "-n", 2, "--steps", 3, "--threads", 1)
        run(
            "calibrate",
            "data/fashion_mnist_6k.npz",
            "-o",
            "held-out",
            "-n",
            1,
            "--steps",
            2,
            "--scales",
            "3,5",
        )
    return folder


def smaller(text):
    for pattern, replacement in SMALLER:
        text = re.sub(pattern, replacement, text)
    return text


def examples(text):
    """Yield the kind and the text of commands, Python blocks and TOML blocks of a page, in order."""
    joined = re.sub(r"\\\n *", "", text)
    for kind, block, line in re.findall(
        r"```(python|toml)\n(.*?)```|^ {4}(patchindex [^\n]*)", joined, re.M | re.S
    ):
        if line and not NOT_HERE.search(line):
            yield "command", line
        elif block and "__main__" not in block:
            yield kind, block


def run_line(line):
    """Run a command, with few steps; its output folder is new, unless it goes on in it."""
    _, name, *words = shlex.split(re.split(r" [|>] ", line)[0], comments=True)
    if "-o" in words and not {"--resume", "--add-scales"} & {*words}:
        shutil.rmtree(words[words.index("-o") + 1], ignore_errors=True)
    if name in FEW_STEPS and "--config" not in words and not {"--steps", "--minutes"} & {*words}:
        words += ["--steps", "3"]
    if name == "train" and not {"--channels", "--widths", "--config"} & {*words}:
        words += ["--channels", "16", "--layers", "1"]
    if name == "compare":
        words += ["--network-steps", "3", "--along", "1", "--noised", "1"]
    if name == "calibrate":
        words += ["-n", "1"]
    if "run.toml" in words:
        shutil.rmtree("samples")
    run(name, *words)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_and_examples_of_a_page_run(page, stand_ins, tmp_path, monkeypatch):
    shutil.copytree(stand_ins, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    scheduler = SimpleNamespace(alphas_cumprod=np.linspace(0.99, 0.01, 10))
    names = {"pi": pi, "scheduler": scheduler, "model": lambda x, step: 0 * x, "__name__": "page"}
    names["images"] = pi.open_images("data/fashion_mnist_6k.npz")
    names["machine"] = pi.ScoreMachine(names["images"], machine="LS", locality=[3, 3, 5, 7])
    found = [(kind, smaller(text)) for kind, text in examples((ROOT / page).read_text())]
    for kind, text in found:
        if kind == "toml":
            Path("run.toml").write_text(text)
    for kind, text in found:
        if kind == "command":
            run_line(text)
        elif kind == "python" and page not in RUN_ELSEWHERE:
            if "build_index(" in text:
                shutil.rmtree("fashion.zarr")
            if "networks.train(" in text:
                shutil.rmtree("run")
                names["index"] = pi.open_index("fashion.zarr")
            exec(text, names)
    assert found
