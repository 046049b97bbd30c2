r"""Table 1 of Kamb & Ganguli (arXiv 2412.20292) for small networks: train, calibrate, compare, join.

    python benchmarks/table1.py --mnist mnist_train.npz --cifar10 cifar10_train.npz \
        --fashion-mnist fashion-mnist --work DIR
    python benchmarks/table1.py --mnist mnist_train.npz --only mnist-resnet-zeros --work DIR

Images are 32 x 32, as in the paper: MNIST and Fashion-MNIST are resized. CIFAR-10 and Fashion-MNIST networks
have class labels, as in the paper. For each network:

    DIR/runs/NAME       `patchindex train`
    DIR/scales/NAME     `patchindex calibrate --network`
    DIR/stores/DATA     `patchindex build`
    DIR/NAME/SCHEDULE   `patchindex compare` by the calibrated schedule and by the published one

and last DIR/joined/table.md, with a row for each comparison. Scores are exact and of all training images, but
bbELS and ELS on MNIST take `auto` and an index, in DIR/stores/DATA-MACHINE.zarr: MNIST networks have no
labels, and each pixel is compared with the patches of 60 000 images. DIR/NAME/exact compares the first images
by `exact`, and by `auto` with a smaller tolerance; the script prints how far r is.

Each command is printed, and resumes when the script is run again. With --only, other networks are left out.
Long: 40 to 50 minutes of training on two cores for each network, and as long again for the comparisons.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import patchindex as pi

OTHERS = ("LS", "IS", "wiener", "pca-locality", "pspc", "smoothed", "nearest")
# The masks that suit MNIST, whose border pixels hardly vary; chosen on held-out images, not by the paper.
MNIST_MASKS = "pca-locality:tau=0.05,relative_to=pixel"
CHECKED = 3  # images that are drawn by `exact` as well as by `auto`
TOLERANCE = 0.0025  # of a second check of `auto`; the default is .01
TRAINING = ("--precision", "bfloat16", "--seed", "0")
RESNET = ("--arch", "resnet", "--channels", "64", "--lr", "1e-3", "--lr-decay", "0.9995", "--steps", "8000")
UNET = ("--arch", "unet", "--lr", "5e-4", "--lr-decay", "0.99935", "--steps", "6000")
ATTENTION = ("--arch", "unet-attention", "--lr", "5e-4", "--lr-decay", "0.9987", "--steps", "3000")


@dataclass(frozen=True)
class Row:
    """A network of the table."""

    data: str
    title: str
    training: tuple[str, ...]
    preset: str | None
    machine: str = "bbELS"


ROWS = {
    "mnist-resnet-zeros": Row("mnist", "MNIST, ResNet (zeros)", RESNET, "mnist-resnet-zeros"),
    "fashion-resnet-zeros": Row(
        "fashion_mnist", "Fashion-MNIST, ResNet (zeros)", RESNET, "fashion-mnist-resnet-zeros"
    ),
    "cifar10-resnet-zeros": Row("cifar10", "CIFAR-10, ResNet (zeros)", RESNET, "cifar10-resnet-zeros"),
    "mnist-unet-zeros": Row("mnist", "MNIST, UNet (zeros)", UNET, "mnist-unet-zeros"),
    "cifar10-unet-zeros": Row("cifar10", "CIFAR-10, UNet (zeros)", UNET, "cifar10-unet-zeros"),
    "cifar10-unet-attention": Row(
        "cifar10", "CIFAR-10, UNet with attention", ATTENTION, "cifar10-unet-zeros"
    ),
    "mnist-resnet-circular": Row(
        "mnist",
        "MNIST, ResNet (circular)",
        (*RESNET, "--padding", "circular"),
        "mnist-resnet-circular",
        "ELS",
    ),
}
SIZE = {"mnist": ("--resize", "32"), "fashion_mnist": ("--resize", "32"), "cifar10": ()}
LABELS = {"fashion_mnist", "cifar10"}  # networks of these data have class labels
INDEXED = {"mnist"}  # without labels, `auto` and an index are far faster than `exact`
CODES = ("--pca-dims", "16")  # codes of the default size take 4 GB of disk per scale


def patchindex(*command: str | Path) -> None:
    """Print a command of the package, run it, and end the script if the command fails."""
    words = [str(word) for word in command]
    print(f"\n$ patchindex {shlex.join(words)}", flush=True)
    start = time.perf_counter()
    code = subprocess.run([sys.executable, "-m", "patchindex", *words]).returncode
    print(f"# {time.perf_counter() - start:.0f} s", flush=True)
    if code:
        sys.exit(code)


@dataclass(frozen=True)
class Study:
    """The commands of one network."""

    name: str
    source: str
    work: Path
    options: tuple[str, ...]  # of all commands

    @property
    def row(self) -> Row:
        """The row of the network in the table."""
        return ROWS[self.name]

    @property
    def run(self) -> Path:
        """The folder of the network."""
        return self.work / "runs" / self.name

    @property
    def store(self) -> Path:
        """The store of the training images."""
        machine = f"-{self.row.machine.lower()}" if self.indexed else ""
        return self.work / "stores" / f"{self.row.data}{machine}.zarr"

    @property
    def indexed(self) -> bool:
        """True if the store has an index, for `auto`."""
        return self.row.data in INDEXED

    @property
    def schedules(self) -> dict[str, str]:
        """Locality schedules by kind: a file or the name of a preset."""
        own = {"calibrated": str(self.work / "scales" / self.name / "schedule.json")}
        return own if self.row.preset is None else own | {"published": self.row.preset}

    def train(self) -> None:
        """Train the network, from its last checkpoint."""
        size = SIZE[self.row.data]
        labels = ("--conditional",) if self.row.data in LABELS else ()
        settings = (*size, *labels, *self.row.training, *TRAINING)
        patchindex("train", self.source, "-o", self.run, *settings, *self.options, "--resume")

    def calibrate(self) -> None:
        """Measure the locality schedule on six samples and some training images, unless that is done."""
        folder = self.work / "scales" / self.name
        if (folder / "schedule.json").exists():
            return
        some = ("--limit", "30000" if self.row.data in LABELS else "6000", "--other-images")
        beside = ("--beside", self.row.preset) if self.row.preset else ()
        patchindex(
            *("calibrate", self.source, "--network", self.run, "-o", folder, "--machine", self.row.machine),
            *(*SIZE[self.row.data], *some, "-n", "6", "--pixels", "256", *beside, *self.options, "--resume"),
        )

    def build(self) -> None:
        """Build the store; index the scales of the schedules if the network takes `auto`."""
        if not self.store.exists():
            patchindex(
                *("build", self.source, "-o", self.store, *SIZE[self.row.data], *self.options, "--resume"),
                *self._scales((*CODES, "--machine", self.row.machine, "--scales"), ("--machine", "IS")),
            )
        elif missing := self._scales((), ()):
            patchindex("build", "-o", self.store, "--add-scales", *missing, *CODES, *self.options, "--resume")

    def _scales(self, before: tuple[str, ...], without: tuple[str, ...]) -> tuple[str, ...]:
        """Return the scales that an index has to have, after some options; `without` if it has them all."""
        held = set(pi.open_index(self.store).scales) if self.store.exists() else set()
        wanted = {k for each in self.schedules.values() for k in pi.LocalitySchedule.of(each).distinct}
        missing = sorted(wanted - held) if self.indexed else []
        return (*before, ",".join(map(str, missing))) if missing else without

    def compare(self, n: int) -> list[Path]:
        """Compare by each schedule; return the folders."""
        masks = (MNIST_MASKS,) if self.row.data == "mnist" else ()
        folders = []
        for kind, schedule in self.schedules.items():
            # Only these denoisers have a locality schedule.
            others = (*OTHERS, *masks) if kind == "calibrated" else ("LS", "pspc", "IS")
            folders.append(self._compare(kind, schedule, n, (self.row.machine, *others), "--along", "5"))
        if self.indexed:
            first = f"{self.row.machine}:estimator=exact"
            finer = f"{self.row.machine}:tolerance={TOLERANCE}"
            machines = (first, finer, "nearest")
            exact = self._compare("exact", self.schedules["calibrated"], CHECKED, machines, "--along", "0")
            for name, auto in (self.row.machine, folders[0]), (finer, exact):
                pairs = zip(r_of(auto, name), r_of(exact, first), strict=False)
                apart = ", ".join(f"{abs(a - b):.4f}" for a, b in pairs)
                print(f"# {name} by auto, and exact: r of the first images differs by {apart}")
        return folders

    def _compare(self, kind: str, schedule: str, n: int, machines: tuple[str, ...], *options: str) -> Path:
        folder = self.work / self.name / kind
        # The images of most denoisers are the same for all networks of the same images.
        done = [self.work / name / kind for name, row in ROWS.items() if row.data == self.row.data]
        reuse = [("--reuse", each) for each in done if each != folder and (each / "results.json").exists()]
        patchindex(
            *("compare", self.store, "--network", self.run, "-o", folder, "--machines", ",".join(machines)),
            *("-n", str(n), "--locality", schedule, "--noised", "0", *options, *self.options),
            *("--name", f"{self.row.title}, {kind} schedule", "--resume", *(reuse[0] if reuse else ())),
        )
        return folder


def r_of(folder: Path, denoiser: str) -> list[float]:
    """Return r of the images of a denoiser with the network's in 150 steps."""
    with (folder / "images.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["denoiser"] == denoiser]
    return [float(row["pearson_r"]) for row in rows if row["network_steps"] == "150"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder for new files")
    parser.add_argument("--mnist", metavar="IMAGES")
    parser.add_argument("--cifar10", metavar="IMAGES")
    parser.add_argument("--fashion-mnist", metavar="IMAGES")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("-n", type=int, default=20, help="noises for each network")
    parser.add_argument("--threads")
    args = parser.parse_args()
    missing = {ROWS[name].data for name in args.only if getattr(args, ROWS[name].data) is None}
    if missing:
        flags = ", ".join(f"--{data.replace('_', '-')}" for data in sorted(missing))
        parser.error(f"give the images of {flags}, or leave out their networks with --only")
    threads = ("--threads", args.threads) if args.threads else ()
    studies = [Study(name, getattr(args, ROWS[name].data), args.work, threads) for name in args.only]
    for study in studies:
        study.train()
        study.calibrate()
    folders = []
    for study in studies:
        study.build()
        folders += study.compare(args.n)
    joined = args.work / "joined"
    patchindex("compare-table", *folders, "-o", joined, "--overwrite")
    print(f"\n{joined / 'table.md'}")


if __name__ == "__main__":
    main()
