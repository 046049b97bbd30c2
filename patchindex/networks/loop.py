"""The training loop: a network in training, its optimiser, and the state that is saved and restored."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import AdamW
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from patchindex.checks import is_real, is_whole
from patchindex.devices import float64_device, to_float64
from patchindex.errors import InputError, Option, PatchIndexError
from patchindex.images import ImageSource
from patchindex.images.by_label import as_tensor, to_unit
from patchindex.networks.architectures import ResNet, UNet, make_network
from patchindex.networks.batches import (
    LEVELS,
    Batch,
    Batches,
    class_labels,
    held_out_batches,
    weights_seed,
)
from patchindex.networks.files import (
    FORMAT,
    LOSSES,
    PICTURE,
    RUN,
    STATE,
    WEIGHTS,
    TensorFile,
    write_tensors,
)
from patchindex.networks.losses import COLUMNS, plot_losses, write_losses
from patchindex.networks.provenance import ImagesRecord
from patchindex.networks.settings import OtherRunError, TrainSettings
from patchindex.runtime import Progress
from patchindex.schedules import noise_schedule
from patchindex.store.text_files import write_json

__all__ = ["Report", "Training"]

STEPS_PER_ROW = 100
CHECKPOINT_SECONDS = 120.0
LARGEST = 1e300  # of a number in a state; products with larger ones overflow

Report = Callable[[dict[str, Any]], None]


@dataclass
class _Clock:
    """The time of a run over all of its parts, in seconds."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def start(self) -> None:
        self._started = time.perf_counter() - self.seconds, time.process_time() - self.cpu_seconds

    def read(self) -> float:
        self.seconds = time.perf_counter() - self._started[0]
        self.cpu_seconds = time.process_time() - self._started[1]
        return self.seconds


class Training:
    """A network in training: the weights, the optimiser, and the number of steps that are done."""

    def __init__(
        self, images: ImageSource, held_out: ImageSource | None, settings: TrainSettings, device: torch.device
    ) -> None:
        self.images, self.held_out, self.settings, self.device = images, held_out, settings, device
        height, width, channels = images.shape[1:]
        self.classes = class_labels(images, settings)
        if held_out is not None and len(
            unknown := np.setdiff1d(class_labels(held_out, settings), self.classes)
        ):
            raise InputError(
                f"label {unknown[0]} is in the held-out images only",
                parameter="validation",
                remedy="shuffle the images, or hold out others",
            )
        self.batches = Batches(images, settings.batch_size, settings.seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(weights_seed(settings.seed))  # of the CPU only
            network = make_network(
                settings.arch, (channels, height, width), len(self.classes), settings.options
            )
        self.network: ResNet | UNet = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = None if settings.ema is None else AveragedModel(
            self.network, multi_avg_fn=get_ema_multi_avg_fn(settings.ema)
        )  # fmt: skip
        self.optimiser = AdamW(self.network.parameters(), lr=settings.lr, weight_decay=0.0)
        self.scheduler = ExponentialLR(self.optimiser, settings.lr_decay)
        noise = noise_schedule(settings.noise)
        self.betas = torch.tensor([noise(i / LEVELS) for i in range(LEVELS)], dtype=torch.float64).float()
        self.clock = _Clock()
        self.step, self.losses = 0, list[dict[str, Any]]()
        self.loss_sum = torch.zeros(
            (), dtype=torch.float64, device=float64_device(device)
        )  # since the last row

    @property
    def last_step(self) -> float:
        """The step at which the training ends, unless its time is over before; infinity without limits."""
        epochs, steps = self.settings.epochs, self.settings.steps
        return min(math.inf if epochs is None else epochs * self.batches.per_epoch, steps or math.inf)

    @property
    def seconds_allowed(self) -> float:
        """The longest time of the run; infinity without a limit."""
        return math.inf if self.settings.minutes is None else 60 * self.settings.minutes

    def describe(self, threads: int) -> None:
        """Begin the record of the run: all that is known before the first step."""
        settings = self.settings.to_json()
        names = self.images.label_names
        self.record: dict[str, Any] = {
            "format": FORMAT,
            "architecture": {"name": settings.pop("arch"), **self.network.options},
            "shape": [self.images.shape[3], *self.images.shape[1:3]],
            "labels": self.classes.tolist() if settings["conditional"] else None,
            "label_names": list(names) if settings["conditional"] and names is not None else None,
            "noise": settings.pop("noise"),
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "images": ImagesRecord.of(self.images).to_json(),
            "settings": self.settings.to_json(),
            "device": str(self.device),
            "threads": threads,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in ("patchindex", "torch", "numpy", "safetensors")}
            | {"python": platform.python_version()},
        }

    def run(self, folder: Path, progress: Progress, report: Report | None = None) -> None:
        """Train until a limit is reached, and write the files of the run."""
        self.clock.start()
        saved = -math.inf
        while True:
            seconds = self.clock.read()
            done = self.step >= self.last_step or seconds >= self.seconds_allowed
            if done or seconds - saved >= CHECKPOINT_SECONDS:
                self.save(folder)
                saved = seconds
            progress(
                "training", max(self.step / self.last_step, min(seconds / self.seconds_allowed, 1.0)), 1.0
            )
            if done:
                return
            self.loss_sum += self._train_on(self.batches.at(self.step))
            self.step += 1
            if self.step % STEPS_PER_ROW == 0:
                self.losses.append(self._row(STEPS_PER_ROW))
                self.loss_sum.zero_()
                if report is not None:
                    report(self.losses[-1])

    def _train_on(self, batch: Batch) -> Tensor:
        """Take one step, and return the loss."""
        self.network.train()
        loss = self._loss(self.network, batch)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return to_float64(loss.detach())

    def _loss(self, network: nn.Module, batch: Batch) -> Tensor:
        # Channels last, as the network is.
        x_0 = to_unit(as_tensor(batch.pixels, self.device).permute(0, 3, 1, 2))
        levels = torch.from_numpy(batch.levels)
        eps = torch.from_numpy(batch.eps).to(self.device)
        beta = self.betas[levels].to(self.device)[:, None, None, None]
        x = (1 - beta).sqrt() * x_0 + beta.sqrt() * eps
        label = None
        if self.settings.conditional and batch.labels is not None:
            label = torch.from_numpy(np.searchsorted(self.classes, batch.labels)).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            predicted = network(x, (levels / LEVELS).float().to(self.device), label)
        return mse_loss(predicted.float(), eps)

    def _row(self, steps: int) -> dict[str, Any]:
        """Return the row of the table of losses for the last `steps` steps."""
        loss = float(self.loss_sum) / steps
        if not math.isfinite(loss):
            raise PatchIndexError(
                f"the loss is not finite at step {self.step}",
                where="training",
                remedy=["give a smaller ", Option("lr")],
            )
        return {
            "step": self.step,
            "images_seen": self.batches.images_seen(self.step),
            "loss": loss,
            "validation_loss": self._validation_loss(),
            "lr": self.scheduler.get_last_lr()[0],
            "seconds": round(self.clock.read(), 3),
        }

    @torch.no_grad()
    def _validation_loss(self) -> float | None:
        """Return the loss on the held-out images, always with the same times and noise."""
        if self.held_out is None:
            return None
        network = self._result()
        network.eval()
        total = 0.0
        for batch in held_out_batches(self.held_out, self.settings.batch_size, self.settings.seed):
            total += float(self._loss(network, batch)) * len(batch.pixels)
        return total / len(self.held_out)

    def _result(self) -> nn.Module:
        """Return the network with the weights to use."""
        return self.network if self.average is None else self.average.module

    def save(self, folder: Path) -> None:
        """Write a checkpoint; see `patchindex.networks.files`."""
        rows = list(self.losses)
        if rest := self.step % STEPS_PER_ROW:
            rows.append(self._row(rest))
        self.clock.read()
        self.record |= {
            "step": self.step,
            "epochs": round(self.step / self.batches.per_epoch, 3),
            "seconds": round(self.clock.seconds, 3),
            "cpu_seconds": round(self.clock.cpu_seconds, 3),
            "loss": rows[-1]["loss"] if rows else None,
            "validation_loss": rows[-1]["validation_loss"] if rows else None,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        state = {
            "run": self.record,
            "loss_sum": float(self.loss_sum),
            "losses": self.losses,
            "lr": self.optimiser.param_groups[0]["lr"],
        }
        write_losses(folder / LOSSES, rows)
        write_tensors(folder / STATE, self._state(), state)
        write_tensors(folder / WEIGHTS, self._result().state_dict(), self.record)
        write_json(folder / RUN, self.record, durable=True)
        title = f"{self.record['architecture']['name']}, {self.record['parameters']:,} parameters"
        plot_losses(folder / PICTURE, rows, title)

    def _state(self) -> dict[str, Tensor]:
        """Return the tensors to resume from; a resumed run copies values into them."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            if parameter not in self.optimiser.state:  # as AdamW begins
                self.optimiser.state[parameter] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }
            tensors |= {f"optimiser.{key}.{name}": t for key, t in self.optimiser.state[parameter].items()}
        return tensors

    def restore(self, folder: Path) -> None:
        """Continue from the state of an earlier part of the run."""
        path = folder / STATE
        file = TensorFile(path)
        try:
            state = file.header
            before = state["run"]
            self.settings.check_resumed(before["settings"], folder)
            if ImagesRecord(**before["images"]) != ImagesRecord(**self.record["images"]):
                raise OtherRunError(
                    "the run has other images",
                    where=folder,
                    remedy=[
                        "give the images that it was started with, or replace the run with ",
                        Option("overwrite", True),
                    ],
                )
            self.losses = [{name: row[name] for name in COLUMNS} for row in state["losses"]]
            numbers = [
                before["step"],
                before["seconds"],
                before["cpu_seconds"],
                state["loss_sum"],
                state["lr"],
            ]
            numbers += [value for row in self.losses for value in row.values() if value is not None]
            bounded = all(is_real(value) and abs(value) < LARGEST for value in numbers)
            if not bounded or not is_whole(before["step"]) or before["step"] < 0:
                raise ValueError("a number is missing or out of range")
            self.step = int(before["step"])
            self.loss_sum.fill_(float(state["loss_sum"]))
            self.clock = _Clock(float(before["seconds"]), float(before["cpu_seconds"]))
            self._continue_scheduler(float(state["lr"]))
            self.record["created"] = before["created"]
            self._copy_state(file)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"is damaged ({error!r})",
                where=path,
                remedy=["start again with ", Option("overwrite", True), ", and without ", Option("resume")],
            ) from None

    @torch.no_grad()
    def _copy_state(self, file: TensorFile) -> None:
        targets = self._state()
        for name, tensor in file.read(targets).items():
            if name.startswith("optimiser.step.") and not 0 <= float(tensor) <= self.step:
                raise ValueError(f"{name} is {float(tensor):g} after {self.step} steps")
            targets[name].copy_(tensor)

    def _continue_scheduler(self, lr: float) -> None:
        self.optimiser.param_groups[0]["lr"] = lr
        done = {"last_epoch": self.step, "_step_count": self.step + 1, "_last_lr": [lr]}
        self.scheduler.load_state_dict(self.scheduler.state_dict() | done)
