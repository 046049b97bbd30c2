"""The command group: start-up, help, and errors as one line with the flags of the command line."""

import os
import re
import signal
import subprocess
import sys
import time

import click
import numpy as np
import patchindex_cli
import pytest
import torch
from click.testing import CliRunner
from commands import DATA, ROOT, refused, run
from patchindex_cli.app import main

COMMANDS = [
    *("append", "build", "calibrate", "compare", "compare-table", "explain", "info", "originality", "sample"),
    *("study", "train", "tune", "verify"),
]
HEAVY = ("numpy", "torch", "faiss", "numba", "zarr", "h5py", "PIL", "rich", "matplotlib", "distributed")


def test_help_imports_no_heavy_module():
    code = f"""
import sys
from click.testing import CliRunner
from patchindex_cli import main
for args in ([], *([name] for name in {COMMANDS})):
    assert "Usage:" in CliRunner().invoke(main, [*args, "--help"]).output
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_with_options_that_exist(command):
    text = run(command, "--help").stdout
    _, _, examples = re.sub(r"\\\n *", "", text).partition("Example")
    examples = [line.split() for line in examples.splitlines() if line.startswith("    patchindex ")]
    assert examples
    for _, name, *words in examples:
        flags = {flag for parameter in main.commands[name].params for flag in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= flags


def test_the_group_lists_all_commands():
    assert sorted(main.commands) == COMMANDS
    assert run().stdout == run("--help").stdout


def test_an_interrupted_import_is_one_line(monkeypatch):
    class Interrupting:
        def find_spec(self, name, *_):
            if name == "patchindex_cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "patchindex_cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        patchindex_cli.main  # noqa: B018
    assert ended.value.code == "Error: interrupted"  # Python prints it on stderr and exits with 1


def test_an_interrupted_command_is_one_line(store, monkeypatch):
    class Interrupting:
        def find_spec(self, name, *_):
            if name == "patchindex.figures":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "patchindex.figures", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert run("study", store, "-o", "unused", code=1).stderr.strip() == "Error: interrupted"


def test_an_interrupted_comparison_says_how_to_continue(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("patchindex.study.theory", interrupted)
    network = ROOT / "data" / "fashion_resnet"
    small = ("--limit", 9, "--other-images", "--machines", "IS", "-n", 1)
    ended = run("compare", DATA, "--network", network, "-o", tmp_path / "compared", *small, code=1)
    assert "compared: interrupted; continue with --resume" in ended.stderr


def test_a_terminated_command_ends_as_an_interrupted_one(store, tmp_path, monkeypatch):
    def terminated(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("patchindex.sampling.Sampling.draw", terminated)
    said = run("sample", store, "-o", tmp_path / "out", "-n", 1, code=1)
    assert said.stderr.strip() == "Error: interrupted"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("take", [lambda: torch.empty(1 << 50), lambda: np.empty(1 << 60, np.uint8)])
def test_a_refused_allocation_is_one_line(take):
    group = type(main)(commands={"take": click.command()(take)})
    said = CliRunner().invoke(group, ["take"])
    assert said.exit_code == 1
    assert said.stderr.startswith("Error: not enough memory (")
    assert said.stderr.count("\n") == 1


def test_a_gpu_without_enough_memory_is_one_short_line():
    def take():
        raise torch.cuda.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 9.00 GiB of which "
            "1.25 GiB is free. Process 12 has 3.00 GiB memory in use.\nSee the documentation."
        )

    said = CliRunner().invoke(type(main)(commands={"take": click.command()(take)}), ["take"])
    assert said.exit_code == 1
    assert said.stderr == (
        "Error: not enough memory (an array of 2.50 GiB does not fit into 1.25 GiB); "
        "use a smaller batch or smaller options\n"
    )


def test_an_apple_gpu_without_enough_memory_is_one_line():
    """As torch 2.5 and later say it for a buffer beyond the limit of Metal."""

    def take():
        raise RuntimeError("Invalid buffer size: 256.00 GiB")

    said = CliRunner().invoke(type(main)(commands={"take": click.command()(take)}), ["take"])
    assert said.exit_code == 1
    assert said.stderr.startswith("Error: not enough memory (an array of 256.00 GiB does not fit)")


def test_other_errors_keep_their_traceback():
    def fail():
        raise RuntimeError("a fault of the program")

    said = CliRunner().invoke(type(main)(commands={"fail": click.command()(fail)}), ["fail"])
    assert isinstance(said.exception, RuntimeError)


@pytest.mark.parametrize(
    "args",
    [
        ["no-such-command"],
        ["--no-such-option"],
        ["build"],
        ["build", DATA],
        ["build", DATA, "-o", "x", "--machine", "XLS"],
        ["build", DATA, "-o", "x", "--train-windows", "XLS"],
        ["sample", "x", "-o", "y", "--sampler", "XLS"],
        ["build", DATA, "-o", "x", "--crop", "abc"],
        ["build", DATA, "-o", "x", "--scales", "3", "--seed", "-5"],
        ["build", DATA, "-o", "x", "--scales", "3", "--threads", "0"],
        ["sample", "x", "-o", "y", "--steps", "1"],
    ],
)
def test_wrong_usage_is_one_line_with_the_help_command(args):
    command = f" {args[0]}" if args[0] in COMMANDS else ""
    assert re.search(rf"; see .*{command} --help$", refused(*args))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["build", "SOURCE", "-o", "STORE", "--scales", "3"], "use another path, or --overwrite"),
        (["build", "SOURCE", "-o", "STORE", "--scales", "3", "--resume"], "or --overwrite"),
        (["build", "SOURCE", "-o", "new", "--scales", "3", "--memory", "9M"], "--memory: .*; raise it"),
        (["append", "STORE", "SOURCE", "--memory", "1K"], "Error: --memory: .*; raise it"),
        (
            ["study", "STORE", "-o", "new", "--locality", "3,9"],
            "build --add-scales.*sample --nearest-scales.*with --estimator exact",
        ),
        (["sample", "STORE", "-o", "new", "--estimator", "auto:probes=0"], "--estimator: probes: must be"),
        (["build", "SOURCE", "-o", "new", "--scales", "3", "--memory", "lots"], "Error: --memory: "),
        (["build", "SOURCE", "-o", "new", "--scales", "3", "--device", "tpu"], "Error: --device: "),
        (["build", "SOURCE", "-o", "new", "--scales", "three"], "Error: --scales: 'three' is not a list"),
        (["build", "SOURCE", "-o", "new", "--scales", "3,4"], "Error: --scales: k must be odd .*, got 4"),
        (
            ["build", "SOURCE", "-o", "new", "--scales", "3", "--labels", "gone.npy"],
            "or use --labels folders",
        ),
        (["build", "SOURCE", "-o", "new", "--locality", "none"], "Error: --locality: unknown preset 'none'"),
        (["build", "-o", "STORE", "--add-scales", "9,x"], "Error: --add-scales: '9,x' is not a list"),
        (["build", "-o", "STORE", "--add-scales", "9", "--scales", "3"], "Error: --scales: is fixed in the"),
        (["sample", "STORE", "-o", "new", "--estimator", "best"], "Error: --estimator: unknown estimator"),
        (["sample", "STORE", "-o", "new", "--locality", "3,9"], "--nearest-scales"),
        (["sample", "STORE", "-o", "new", "--x-t", "SOURCE"], "x_T"),
    ],
)
def test_errors_of_the_library_have_the_flags_of_the_command_line(args, message, source, store):
    paths = {"SOURCE": source, "STORE": store}
    said = refused(*(paths.get(arg, arg) for arg in args))
    assert re.search(message, said), said
    assert "=True" not in said
