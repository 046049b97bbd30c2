"""Small valid inputs other than images: networks, unfinished runs, schedules and results of comparisons.

`use` opens an input with the package and returns numbers or text; `reference` returns them without the checks
of the package. A mutant that the reference cannot read either may be refused or give any result.
"""

from __future__ import annotations

import atexit
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mutations import PLAIN, Mutation, change_bytes, change_json, change_text, inside_safetensors, inside_zip
from safetensors import safe_open
from safetensors.torch import load_file

import patchindex as pi
from patchindex.networks import TrainSettings, make_network, open_network, train
from patchindex.schedules import NOISE_SCHEDULES, LocalitySchedule
from patchindex.study import TheoryOptions, theory
from patchindex.study.theory_table import markdown, read_run, wide_rows

IMAGES = (np.arange(24 * 8 * 8) * 7 % 251).astype(np.uint8).reshape(24, 8, 8)
LABELS = np.arange(24) % 3
T = 0.5
SMALL = TrainSettings(options={"channels": 16, "layers": 1}, batch_size=8, steps=1, conditional=True)
LONGER = TrainSettings(options={"channels": 16, "layers": 1}, batch_size=8, steps=2, conditional=True)
OPTIONS = TheoryOptions(steps=3, network_steps=3, along=1, noised=1)
JSON = (change_json, change_json, change_text, change_bytes)
WEIGHTS = (*PLAIN, inside_safetensors, inside_safetensors, inside_safetensors)


@dataclass(frozen=True)
class Input:
    """A valid input: `make(folder)` writes it once, and mutants are changed copies."""

    make: Callable[[Path], None]
    mutate: dict[str, tuple[Mutation, ...]]  # by the end of a file's name
    use: Callable[[Path], Any]
    reference: Callable[[Path], Any] | None = None  # None: no other reader of these files

    def write(self, folder: Path) -> str:
        """Write the input into a folder; return its name there."""
        shutil.copytree(template(self.make), folder, dirs_exist_ok=True)
        return "."


@cache
def template(make: Callable[[Path], None]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # children end without it
    make(folder)
    return folder


def noisy(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32))


def means(network: Any) -> np.ndarray:
    label = None if network.labels is None else int(network.labels[0])
    return network.posterior_mean(noisy(network.shape), T, label=label).mean.numpy()


# Networks.


def make_run(folder: Path) -> None:
    train(IMAGES, folder, SMALL, labels=LABELS, threads=1)


def run_by_torch(folder: Path) -> np.ndarray:
    file = folder / "weights.safetensors"
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["patchindex"])
    options = {name: value for name, value in about["architecture"].items() if name != "name"}
    network = make_network(about["architecture"]["name"], about["shape"], len(about["labels"] or ()), options)
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    x, beta = noisy(tuple(about["shape"])), NOISE_SCHEDULES[about["noise"]](T)
    with torch.no_grad():
        eps = network(x, torch.full((2,), T), torch.zeros(2, dtype=torch.int64) if about["labels"] else None)
    return ((x - beta**0.5 * eps) / (1 - beta) ** 0.5).numpy()


def make_pipeline(folder: Path) -> None:
    import diffusers

    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=4,
    )  # fmt: skip
    diffusers.DDPMPipeline(model, diffusers.DDPMScheduler(num_train_timesteps=100)).save_pretrained(folder)


def pipeline_by_diffusers(folder: Path) -> np.ndarray:
    import diffusers

    model = diffusers.UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True)
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder / "scheduler")
    size = model.config.sample_size
    sides = (size, size) if isinstance(size, int) else tuple(size)
    x, a2 = noisy((model.config.in_channels, *sides)), scheduler.alphas_cumprod.double()
    step = round(T * len(a2)) - 1
    label = None if model.config.num_class_embeds is None else torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        found = model.eval()(x, torch.tensor(step), class_labels=label).sample
    a, b = float(a2[step]) ** 0.5, float(1 - a2[step]) ** 0.5
    kind = scheduler.config.prediction_type
    mean = {"epsilon": (x - b * found) / a, "sample": found, "v_prediction": a * x - b * found}[kind]
    return mean.numpy()


def resumed(folder: Path) -> int:
    return train(IMAGES, folder, LONGER, labels=LABELS, threads=1, resume=True)["step"]


# Locality schedules.


def make_schedule(folder: Path) -> None:
    LocalitySchedule.of("mnist-resnet-circular").save(folder / "s.json")


def schedule_pairs(folder: Path) -> list[Any]:
    schedule = LocalitySchedule.load(folder / "s.json")
    schedule.resized(14) if schedule.provenance and schedule.provenance.image_size else None
    assert all(schedule.k(i / 10) % 2 == 1 for i in range(11))
    return [schedule.name, [list(pair) for pair in schedule.pairs]]


def schedule_by_json(folder: Path) -> list[Any]:
    found = json.loads((folder / "s.json").read_text())
    return [found["name"], [list(pair) for pair in found["pairs"]]]


# Results of comparisons.


def compared(folder: Path, **options: Any) -> Any:
    network = pi.networks.wrap(lambda x, t: 0.5 * x, (1, 8, 8), predicts="x0", name="half")
    every = {"IS": pi.denoiser("IS", IMAGES, threads=1)}
    return theory(network, every, 2, options=OPTIONS, folder=folder, **options)


def make_results(folder: Path) -> None:
    compared(folder).write(folder)


def table(folder: Path) -> list[Any]:
    run = read_run(folder)
    assert markdown([run])
    assert wide_rows([run])
    return [[row["denoiser"], row["network_steps"], row["pearson_r"]] for row in run.summary()]


def table_by_json(folder: Path) -> list[Any]:
    rows = json.loads((folder / "results.json").read_text())["images"]
    found = []
    for steps in dict.fromkeys(row["network_steps"] for row in rows):
        for name in dict.fromkeys(row["denoiser"] for row in rows):
            mine = [r["pearson_r"] for r in rows if (r["denoiser"], r["network_steps"]) == (name, steps)]
            known = [value for value in mine if value is not None and np.isfinite(value)]
            found.append([name, steps, float(np.median(known)) if known else None])
    return found


def again(folder: Path) -> np.ndarray:
    return compared(folder, resume=True).finals["IS"].numpy()


def reused(folder: Path) -> np.ndarray:
    with tempfile.TemporaryDirectory() as other:
        return compared(Path(other), reuse=folder).finals["IS"].numpy()


def images_by_numpy(folder: Path) -> np.ndarray:
    """Return the images in the parts of a comparison; an image that the parts lack, from undamaged parts."""
    found: dict[int, np.ndarray] = {}
    for place in (template(make_results), folder):
        for path in sorted((place / "parts" / "IS").glob("images-3.*.npz")):
            with zipfile.ZipFile(path) as archive:
                assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                found |= dict(zip(file["numbers"].tolist(), file["images"], strict=True))
    return np.stack([found[0], found[1]])


PARTS = {".npz": (*PLAIN, inside_zip(*PLAIN, change_text)), "settings.json": JSON}
INPUTS = {
    "run": Input(make_run, {"weights.safetensors": WEIGHTS}, lambda f: means(open_network(f)), run_by_torch),
    "resumed-run": Input(make_run, {"state.safetensors": WEIGHTS}, resumed),
    "schedule": Input(make_schedule, {"s.json": JSON}, schedule_pairs, schedule_by_json),
    "results": Input(make_results, {"results.json": JSON}, table, table_by_json),
    "parts": Input(make_results, PARTS, again, images_by_numpy),
    "reused-parts": Input(make_results, PARTS, reused, images_by_numpy),
}
if find_spec("diffusers") is not None:
    files = {"model_index.json": JSON, "config.json": JSON, ".safetensors": WEIGHTS}
    INPUTS["diffusers"] = Input(make_pipeline, files, lambda f: means(open_network(f)), pipeline_by_diffusers)
