"""--verbose, --quiet, NO_COLOR, and output without a terminal."""

import json
import logging
import os
import pty
import subprocess
import sys
import warnings

import pytest
from commands import DATA, refused, run

import patchindex as pi
from patchindex.errors import PatchIndexWarning, warn

QUICK = ("-n", 1, "--steps", 3, "--threads", 1)


@pytest.fixture
def store(small_store):
    return small_store


def test_verbose_prints_settings_and_the_log_of_the_library(store, tmp_path):
    usual = run("sample", store, "-o", tmp_path / "usual", *QUICK)
    assert usual.stderr == ""
    said = run("sample", store, "-o", tmp_path / "v", *QUICK, "-v").stderr
    for words in ("option", "value", "command line", "default"):
        assert words in said
    for line in ("index.patch_index: opened ", "denoisers.machine: ELS, estimator auto, scales 3, 5, 7"):
        assert line in said
    assert "sampling.drawing: images: 1, batches: 1, ddim, 2 evaluations each, seed 0" in said
    assert "sampling.drawing: images from 0: t " not in said
    more = run("sample", store, "-o", tmp_path / "vv", *QUICK, "-vv").stderr
    assert more.count("sampling.drawing: images from 0: t ") == 2
    assert logging.getLogger("patchindex").level == logging.NOTSET


def test_quiet_prints_errors_and_requested_output_only(store, tmp_path, monkeypatch):
    monkeypatch.setattr("patchindex_cli.progress.SECONDS_PER_LINE", 0.001)
    done = run("sample", store, "-o", tmp_path / "out", *QUICK, "--quiet", "--locality", "3,5,7")
    assert done.output == ""
    assert refused("sample", store, "-o", tmp_path / "out", "--quiet").startswith("Error: ")
    printed = run("sample", store, "-o", tmp_path / "json", *QUICK, "-q", "--json")
    assert json.loads(printed.stdout)["command"]["options"]["steps"] == 3
    assert printed.stderr == ""
    plan = run("build", DATA, "-o", tmp_path / "s", "--scales", 3, "--limit", 20, "--dry-run", "-q")
    assert "sizes are upper bounds" in plan.stdout
    assert "--quiet and --verbose do not go together" in refused("verify", store, "-q", "-v")
    run("verify", store, "-q")


def test_quiet_hides_warnings(store, monkeypatch):
    def warned(*_, **__):
        warn(PatchIndexWarning("the input is odd"))
        raise KeyboardInterrupt

    monkeypatch.setattr("patchindex.verify", warned)
    assert "Warning: the input is odd" in run("verify", store, code=1).stderr
    assert run("verify", store, "-q", code=1).stderr.strip() == "Error: interrupted"


def test_the_library_logs_without_printing(store, tmp_path, caplog, capfd):
    with caplog.at_level(logging.INFO, "patchindex"), warnings.catch_warnings():
        pi.sample(pi.ScoreMachine(pi.open_index(store)), n=1, steps=2)
    assert any("estimator auto" in record.getMessage() for record in caplog.records)
    caplog.clear()
    pi.sample(pi.ScoreMachine(pi.open_index(store)), n=1, steps=2)
    assert capfd.readouterr() == ("", "")


def terminal_output(args, **environment):
    """Run a command in a terminal of its own; return all that it prints."""
    main, inner = pty.openpty()
    command = [sys.executable, "-m", "patchindex", *map(str, args)]
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(
        command, stdout=inner, stderr=inner, stdin=inner, env={**plain, "TERM": "xterm", **environment}
    ) as process:
        os.close(inner)
        printed = b""
        while True:
            try:
                part = os.read(main, 65536)
            except OSError:  # the terminal is closed
                break
            if not part:
                break
            printed += part
    os.close(main)
    assert process.returncode == 0, printed
    return printed.decode()


@pytest.mark.parametrize(("environment", "has_codes"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_escape_codes_unless_no_color_is_set(store, environment, has_codes):
    printed = terminal_output(["verify", store, "-v"], **environment)
    assert ("\x1b" in printed) == has_codes
    assert "checked" in printed
    assert ("\x1b" in terminal_output(["info", store], **environment)) == has_codes


def test_a_pipe_gets_no_escape_codes(store):
    command = [sys.executable, "-m", "patchindex", "verify", str(store), "-v"]
    environment = {**os.environ, "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout + done.stderr
