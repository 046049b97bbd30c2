"""Forged stores whose checksums are right: each is refused, or gives the right picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import zarr
from forge import mend_checksums

import patchindex as pi

ROOT = Path(__file__).parents[2]
CASES, SCALE = 64, "scales/k003"


def test_forged_stores_are_refused_or_right(tmp_path):
    """More by hand: `python tests/forge.py 10000`."""
    command = [sys.executable, str(ROOT / "tests" / "forge.py"), str(CASES), "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CASES} cases, 0 faults" in done.stdout


def test_mended_checksums_are_the_checksums_of_the_store(labelled, tmp_path):
    """Otherwise forged stores would be refused for their checksums, before anything else is checked."""
    store = pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3], labels=labelled[1]).path
    for file in (store / SCALE / "faiss/c/0", store / "images/c/0/0/0/0"):
        file.write_bytes(file.read_bytes()[:-4] + bytes(4))
    for folder, name in ((SCALE, "list_checksums"), ("", "image_checksums")):
        group = zarr.open_group(store / folder, mode="r+")
        group.create_array(name, data=np.zeros_like(group[name][:]), overwrite=True)
    zarr.open_group(store / SCALE, mode="r+").attrs.update(head_checksum=0, images="00000000")
    assert not pi.verify(store).whole
    mend_checksums(store)
    assert pi.verify(store).problems == ()
