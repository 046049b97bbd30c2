"""Printed text: names from outside cannot control the terminal."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import patchindex_cli
import pytest
from commands import refused, run
from patchindex_cli.output import add_row, echo, new_table, print_table
from PIL import Image

ESCAPE = "\x1b[2J"  # clears the screen


def assert_harmless(text):
    assert "\\x1b[2J" in text
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Class folders and files whose names have escape sequences; one file is damaged."""
    folder = tmp_path_factory.mktemp("names") / f"photos{ESCAPE}"
    for i, name in enumerate((f"cats{ESCAPE}", "[red]dogs[/red]")):
        (folder / name).mkdir(parents=True)
        for j in range(6):
            pixels = np.random.default_rng(10 * i + j).integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{j}.png")
    (folder / f"cats{ESCAPE}" / f"bad{ESCAPE}.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def named_store(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / f"s{ESCAPE}.zarr"
    done = run("build", folder, "-o", path, "--scales", 3, "--labels", "folders", "--skip-bad", "--no-tune")
    assert_harmless(done.stdout)
    assert_harmless(done.stderr)
    return path


def test_commands_escape_names_of_files_and_labels(named_store, folder, tmp_path):
    assert_harmless(run("info", named_store).stdout)
    assert_harmless(run("verify", named_store).stdout)
    assert_harmless(run("info", named_store, "--json").stdout.replace("\\u001b", "\\x1b"))
    assert_harmless(refused("sample", named_store, "-o", tmp_path / "out", "--locality", "3", "--label", "x"))
    assert_harmless(refused("info", folder))
    assert_harmless(refused("info", tmp_path / f"none{ESCAPE}"))
    assert_harmless(refused("sample", named_store, "-o", tmp_path / "out", f"--{ESCAPE}"))


def test_problems_of_a_damaged_store_are_escaped(named_store, tmp_path):
    (named_store / f"stray{ESCAPE}").write_text("")
    said = run("verify", named_store, code=1)
    (named_store / f"stray{ESCAPE}").unlink()
    assert_harmless(said.stdout)
    assert_harmless(said.stderr)


def test_cells_of_a_table_are_plain_text(capsys):
    table = new_table([f"name{ESCAPE}"])
    for name in ("[red]cat[/red]", "[/b]", ":smile:", ESCAPE):
        add_row(table, name)
    print_table(table)
    printed = capsys.readouterr().out
    assert_harmless(printed)
    assert all(name in printed for name in ("[red]cat[/red]", "[/b]", ":smile:"))


def test_lines_stay_lines(capsys):
    echo("one\ntwo\x07")
    assert capsys.readouterr().out == "one\ntwo\\x07\n"


def test_all_commands_print_by_the_functions_of_one_file():
    folder = Path(patchindex_cli.__path__[0])
    for file in folder.glob("*.py"):
        others = re.findall(r"\bclick\.(?:s?echo|style)\(|\w+\.add_row\(", file.read_text())
        assert file.name == "output.py" or not others, file


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "patchindex", "info", str(tmp_path / "模")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "\\u6a21: no such store" in done.stderr
