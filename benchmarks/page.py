r"""Run the benchmarks of docs/benchmarks.md on this machine, and write the page with what they print.

    make bench CIFAR10=cifar10_train.npz AUTHORS=CHECKOUT WORK=DIR
    python benchmarks/page.py --cifar10 cifar10_train.npz --authors CHECKOUT --work DIR [--only images ...]

The page is benchmarks/page.md, with a description of the machine, and with the output of each command below
the command. DIR keeps the outputs, the plots and the stores, so that an interrupted run goes on: a command
runs again when the command or the commit has changed, and always if files differ from their commit. Without
--cifar10 or --authors, the commands that need them are left out, the page says so, and it goes to DIR, as
with --only. The plots of a whole page are copied to the folder of the page.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parent.parent
TEMPLATE, PAGE = ROOT / "benchmarks" / "page.md", ROOT / "docs" / "benchmarks.md"
RUN = re.compile(r"^```run (?P<name>[\w-]+)\n(?P<commands>.*?)^```\n", re.MULTILINE | re.DOTALL)
IMAGE = re.compile(r"^!\[.*?\]\((?P<name>[\w.-]+)\)$", re.MULTILINE)
PLOT = re.compile(r"--plot (\S+)")
PACKAGES = ("numpy", "numba", "torch", "faiss-cpu", "zarr")


class Inputs(NamedTuple):
    """Paths that the words in capitals stand for in commands; None for a path that was not given."""

    CIFAR10: Path | None
    AUTHORS: Path | None
    WORK: Path

    def missing(self, text: str) -> list[str]:
        """Return the words of a text that have no path."""
        return [name for name, path in self._asdict().items() if path is None and name in text]

    def fill(self, command: str) -> list[str]:
        """Return the arguments of a command."""
        words = shlex.split(command.replace("\\\n", " "))
        for name, path in self._asdict().items():
            words = [re.sub(rf"\b{name}\b", str(path), word) for word in words]
        programs = {"python": [sys.executable], "patchindex": [sys.executable, "-m", "patchindex"]}
        return [part for word in words for part in programs.get(word, [word])]


def machine() -> str:
    """Return a sentence about the machine, and a sentence about the versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    bits = torch.backends.cpu.get_cpu_capability()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return (
        f"{date.today().isoformat()}, commit `{commit()}`. "
        f"{os.cpu_count()} cores ({(names or ['unknown'])[0]}, {bits}), {memory:.0f} GiB of memory, "
        f"{gpus or 'no'} GPU{'s' if gpus > 1 else ''}. "
        f"Python {platform.python_version()}, {versions}, {platform.system()}."
    )


def commit() -> str:
    """Return the short name of the commit, with a plus if files have changed since."""
    name = _git("rev-parse", "--short", "HEAD")
    return name + ("+" if _git("status", "--porcelain", "--", "patchindex", "cli", "benchmarks") else "")


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def output_of(name: str, commands: list[str], inputs: Inputs) -> str:
    """Run the commands of a block, and return what they print; or return what an earlier run kept.

    Outputs of files that differ from their commit are not kept, for nothing names what the files were. An
    output whose plot is missing, or was drawn again since, is not taken.
    """
    code = commit()
    key = hashlib.sha256("\n".join([code, *commands]).encode()).hexdigest()[:12]
    kept = None if code.endswith("+") else inputs.WORK / f"{name}-{key}.txt"
    plots = [Path(path) for command in commands for path in PLOT.findall(" ".join(inputs.fill(command)))]
    if kept is not None and kept.exists() and not any(_is_newer(plot, kept) for plot in plots):
        return kept.read_text()
    found = []
    for command in commands:
        print(f"{time.strftime('%H:%M:%S')} {command}", flush=True)
        run = subprocess.run(inputs.fill(command), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if run.returncode:
            raise SystemExit(f"exit code {run.returncode} of: {command}\n{run.stdout}")
        found.append(run.stdout.strip("\n"))
    text = "\n\n".join(found)
    for name_, path in inputs._asdict().items():  # no path of this machine is on the page
        text = text.replace(str(path), name_) if path else text
    if kept is not None:
        kept.write_text(text + "\n")
    return text + "\n"


def _is_newer(plot: Path, kept: Path) -> bool:
    return not plot.exists() or plot.stat().st_mtime_ns > kept.stat().st_mtime_ns


def write(inputs: Inputs, only: list[str]) -> str:
    """Return the page."""

    def block(match: re.Match[str]) -> str:
        name, text = match["name"], match["commands"]
        shown = "".join(f"    {line}\n" for line in text.splitlines())
        if missing := inputs.missing(text):
            return f"{shown}\n*Not run: it needs {' and '.join(missing)}.*\n"
        if only and name not in only:
            return f"{shown}\n*Not run.*\n"
        commands = re.sub(r"\\\n", " ", text).splitlines()
        return f"{shown}\n```text\n{output_of(name, commands, inputs)}```\n"

    page = TEMPLATE.read_text().replace("MACHINE", machine(), 1)
    return RUN.sub(block, page)


def copy_plots(page: str, work: Path, folder: Path) -> None:
    """Copy the plots that the commands made in `work`, and that a page shows, to the folder of the page."""
    for name in IMAGE.findall(page):
        shutil.copyfile(work / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cifar10", type=Path, help="training set of CIFAR-10: .npz with `images` and `labels`"
    )
    parser.add_argument("--authors", type=Path, help="a checkout of Kambm/convolutional_diffusion")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="blocks to run")
    parser.add_argument("-o", "--output", type=Path, help="default: docs/benchmarks.md, if it is whole")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    given = (args.cifar10, args.authors, args.work)
    inputs = Inputs(*(path.resolve() if path else None for path in given))
    whole = not inputs.missing(TEMPLATE.read_text()) and not args.only
    output = args.output or (PAGE if whole else args.work / "benchmarks.md")
    text = write(inputs, args.only)
    if whole and output.parent.resolve() != inputs.WORK:
        copy_plots(text, args.work, output.parent)
    output.write_text(text)
    print(f"written: {output}")


if __name__ == "__main__":
    main()
