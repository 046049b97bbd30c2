"""The memory that a process may use, the machine's or less in a container; and messages of slow blocks."""

from __future__ import annotations

import os
import subprocess
import sys
from threading import Event

import pytest

from patchindex.build import parse_memory
from patchindex.runtime import memory_limit, said_after

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
LEAST = 100 << 20  # of the limits below; every machine has more


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/", {"sys/fs/cgroup/memory.max": f"{LEAST}\n"}),
        ("0::/a/b", {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": f"{LEAST}\n"}),
        ("0::/a", {"sys/fs/cgroup/a/memory.max": f"{LEAST}\n", "sys/fs/cgroup/memory.max": f"{LEAST * 2}\n"}),
        ("4:cpu,memory:/j", {"sys/fs/cgroup/memory/j/memory.limit_in_bytes": f"{LEAST}\n"}),
        # The path is of the host; the container sees its own group as the top.
        ("4:memory:/docker/1f", {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{LEAST}\n"}),
        ("4:memory:/\n0::/", {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{LEAST}\n"}),
    ],
)
def test_the_least_limit_of_the_control_groups_holds(tmp_path, groups, files):
    write(tmp_path, {"proc/self/cgroup": f"{groups}\n", **files})
    assert memory_limit(tmp_path) == LEAST


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/", {"sys/fs/cgroup/memory.max": "max\n"}),
        ("4:memory:/", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}),
        ("4:cpu:/", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "5\n"}),
        ("0::/gone", {}),
        ("1:name=systemd:/a:b", {}),
    ],
)
def test_without_a_limit_the_memory_of_the_machine_holds(tmp_path, groups, files):
    write(tmp_path, {"proc/self/cgroup": f"{groups}\n", **files})
    assert memory_limit(tmp_path) == memory_limit(tmp_path / "nothing") <= MACHINE


def test_half_of_the_limit_is_the_default_budget():
    assert parse_memory(None) == memory_limit() // 2


def test_a_limit_of_the_address_space_holds():
    code = """
import resource
from patchindex.runtime import memory_limit
before = memory_limit()
resource.setrlimit(resource.RLIMIT_AS, (before // 2, resource.RLIM_INFINITY))
print(before, memory_limit())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert after == before // 2


@pytest.mark.parametrize("slow", [True, False])
def test_a_message_comes_from_a_block_that_takes_long_and_from_no_other(slow):
    said = Event()
    with said_after(0.01 if slow else 60.0, said.set):
        assert said.wait(10 if slow else 0.05) == slow
