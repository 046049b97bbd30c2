"""Small valid inputs other than images: networks, unfinished runs, schedules, samples and noise, comparisons.

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
from dataclasses import dataclass, fields
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import zarr
from click.testing import CliRunner
from mutations import PLAIN, Mutation, change_bytes, change_json, change_text, inside_safetensors, inside_zip
from patchindex_cli import main
from patchindex_cli.noise_files import read_noise
from patchindex_cli.options import RunOptions
from patchindex_cli.saved_samples import machine_of, read_record, read_sample, recorded_store, steps_of
from patchindex_cli.sources import open_training
from safetensors import safe_open
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file
from safetensors.torch import load_file

import patchindex as pi
from patchindex.networks import TrainSettings, make_network, open_network, train
from patchindex.runtime import no_progress
from patchindex.sampling import Trajectory, TrajectoryFile, time_grid
from patchindex.sampling.draws import starting_noise
from patchindex.schedules import NOISE_SCHEDULES, LocalitySchedule
from patchindex.study import TheoryOptions, theory
from patchindex.study.theory_table import markdown, read_run, wide_rows

IMAGES = (np.arange(24 * 8 * 8) * 7 % 251).astype(np.uint8).reshape(24, 8, 8)
LABELS = np.arange(24) % 3
T = 0.5
SMALL = TrainSettings(options={"channels": 16, "layers": 1}, batch_size=8, steps=1, conditional=True)
LONGER = TrainSettings(options={"channels": 16, "layers": 1}, batch_size=8, steps=2, conditional=True)
UNET = TrainSettings(
    "unet-attention",
    options={"widths": [16, 16], "embedding_dims": 16},
    batch_size=8,
    steps=1,
    conditional=True,
)
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


def make_unet(folder: Path) -> None:
    train(IMAGES, folder, UNET, labels=LABELS, threads=1)


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


# Samples, and noise to start from.


def make_samples(folder: Path) -> None:
    np.save(folder / "images.npy", IMAGES)
    arguments = f"sample {folder}/images.npy -o {folder} -n 2 --steps 4 --machine LS --locality 3,5,7 --quiet"
    done = CliRunner().invoke(main, arguments.split())
    assert done.exit_code == 0, done.output


def redrawn(folder: Path) -> np.ndarray:
    """Return a sample as `patchindex explain` reads it, after its steps were drawn again."""
    record, run = read_record(folder), RunOptions(0, 1, "cpu", as_json=False)
    recorded_store(record)
    training = open_training(str(template(make_samples) / "images.npy"), {}, run)
    machine = machine_of(training, record, run)
    drawn = read_sample(folder, folder, 1, machine, record)
    if len(time_grid(record["settings"]["steps"], machine.noise)) < 100:  # more take as long as they say
        assert np.isfinite(steps_of(machine, drawn, folder, no_progress).x).all()
    return drawn.image.numpy()


def sample_by_numpy(folder: Path) -> np.ndarray:
    with np.load(folder / "samples.npz", allow_pickle=False) as file:
        return file["images"][1:2].astype(np.float32)


def make_trajectory(folder: Path) -> None:
    arrays = [np.tile(IMAGES[:2, None] / np.float32(255), (3, 1, 1, 1, 1)) for _ in range(2)]
    part = Trajectory(np.array([0.9, 0.5, 0.1]), np.array([5, 3, 3]), *arrays, *[arrays[0][:, :, 0]] * 3)
    TrajectoryFile(folder / "t.zarr").write(part, 0, 2)


def trajectory(folder: Path) -> list[np.ndarray]:
    found = TrajectoryFile(folder / "t.zarr").read([1])
    return [np.nan_to_num(getattr(found, each.name)) for each in fields(Trajectory)]


def trajectory_by_zarr(folder: Path) -> list[np.ndarray]:
    group = zarr.open_group(folder / "t.zarr", mode="r")
    arrays = [group[each.name][:] for each in fields(Trajectory)]
    return [np.nan_to_num(array if array.ndim == 1 else array[:, 1:2]) for array in arrays]


def make_noise(folder: Path) -> None:
    x_T = noisy((1, 8, 8)).numpy()
    np.savez(folder / "x.npz", x_T=x_T)
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("x_T", data=x_T, chunks=(1, 1, 8, 8), compression="gzip", shuffle=True)
    save_file({"x_T": x_T}, folder / "x.safetensors")
    torch.save({"x_T": torch.from_numpy(x_T)}, folder / "x.pt")


def noise_of(end: str, folder: Path) -> np.ndarray:
    return starting_noise(
        pi.denoiser("IS", IMAGES, threads=1), None, 0, read_noise(folder / f"x{end}")
    ).numpy()


def noise_by_h5py(folder: Path) -> np.ndarray:
    with h5py.File(folder / "x.h5") as file:
        return file["x_T"][()]


def noise_by_numpy(folder: Path) -> np.ndarray:
    with np.load(folder / "x.npz", allow_pickle=False) as file:
        return file["x_T"]


def noise_by_torch(folder: Path) -> np.ndarray:
    found = torch.load(folder / "x.pt", weights_only=True)
    return (found["x_T"] if isinstance(found, dict) else found).float().numpy()


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
NOISE = {
    ".npz": ((*PLAIN, inside_zip(*PLAIN, change_text)), noise_by_numpy),
    ".h5": (PLAIN, noise_by_h5py),
    ".safetensors": (WEIGHTS, lambda f: load_numpy(f / "x.safetensors")["x_T"]),
    ".pt": ((*PLAIN, inside_zip(*PLAIN)), noise_by_torch),
}
INPUTS = {
    "run": Input(make_run, {"weights.safetensors": WEIGHTS}, lambda f: means(open_network(f)), run_by_torch),
    "unet-run": Input(
        make_unet, {"weights.safetensors": WEIGHTS}, lambda f: means(open_network(f)), run_by_torch
    ),
    "resumed-run": Input(make_run, {"state.safetensors": WEIGHTS}, resumed),
    "schedule": Input(make_schedule, {"s.json": JSON}, schedule_pairs, schedule_by_json),
    "samples": Input(
        make_samples,
        {"samples.json": JSON, "samples.npz": (*PLAIN, inside_zip(*PLAIN, change_text))},
        redrawn,
        sample_by_numpy,
    ),
    "trajectory": Input(
        make_trajectory,
        {"json": (change_json, change_text), "0": PLAIN, "1": PLAIN},
        trajectory,
        trajectory_by_zarr,
    ),
    **{
        f"noise{end}": Input(make_noise, {end: mutations}, partial(noise_of, end), read)
        for end, (mutations, read) in NOISE.items()
    },
    "results": Input(make_results, {"results.json": JSON}, table, table_by_json),
    "parts": Input(make_results, PARTS, again, images_by_numpy),
    "reused-parts": Input(make_results, PARTS, reused, images_by_numpy),
}
if find_spec("diffusers") is not None:
    files = {"model_index.json": JSON, "config.json": JSON, ".safetensors": WEIGHTS}
    INPUTS["diffusers"] = Input(make_pipeline, files, lambda f: means(open_network(f)), pipeline_by_diffusers)
