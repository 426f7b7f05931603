"""What computations have freed goes back to the system."""

import platform
import subprocess
import sys

import pytest

# 40 blocks of 16 MiB, below the mmap threshold, freed with a small one behind them; anonymous MiB held then.
HELD = """
import asyncio, torch
from common.runtime.allocator import set_up_allocator
from common.runtime.compute import ComputeThread

def resident():
    fields = open("/proc/self/status").read().split("RssAnon:")[1].split()
    return int(fields[0]) // 1024

def work():
    blocks, behind = [], []
    for _ in range(40):
        blocks.append(torch.ones(4 << 20))
        behind.append(torch.ones(100))
    kept.extend(behind)
    return resident()

kept = []
set_up_allocator()
before = resident()
compute = ComputeThread()
during = asyncio.run(compute.run(work))
print(during - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_a_computation_has_freed_goes_back() -> None:
    told = subprocess.run(
        [sys.executable, "-c", HELD], capture_output=True, text=True, timeout=120, check=True
    ).stdout.split()
    during, after = map(int, told)
    assert during > 600 and after < 200
