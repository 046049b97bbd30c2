"""Run a command in this process, as a user would."""

from pathlib import Path

from click.testing import CliRunner
from patchindex_cli import main

ROOT = Path(__file__).parents[2]
DATA = str(ROOT / "data" / "fashion_mnist_6k.npz")


def run(*args, code=0):
    """Run a command and check its exit code."""
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


def refused(*args, code=2):
    """Run a command that fails; return its one line on stderr."""
    result = run(*args, code=code)
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    return result.stderr
