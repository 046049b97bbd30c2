"""Peak memory of a build, measured and compared with its plan."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

BUILD = """
import json, sys, threading, time
import numpy as np
import patchindex as pi
from patchindex.build import BuildSettings, plan_build

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

def watch():
    while not done:
        peak.append(max(peak.pop(), anonymous()))
        time.sleep(0.005)

path, k, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
source = pi.open_images("data/fashion_mnist_6k.npz", limit=n)
plan, _ = plan_build(source, BuildSettings([k]))
pi.build_index(source.subset(50), path, [k])  # compiles
peak, done = [anonymous()], []
start = peak[0]
watcher = threading.Thread(target=watch)
watcher.start()
pi.build_index(source, path, [k], overwrite=True, memory=plan.memory_bytes)
done.append(True)
watcher.join()
print(json.dumps([plan.memory_bytes, peak[0] - start]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux reports RssAnon")
@pytest.mark.parametrize(("k", "n"), [(3, 6000), (15, 1500)])
def test_a_build_keeps_to_the_memory_of_its_plan(tmp_path, k, n):
    command = [sys.executable, "-c", BUILD, tmp_path / "s.zarr", str(k), str(n)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    planned, taken = json.loads(done.stdout)
    assert taken <= planned
