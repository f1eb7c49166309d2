import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not GNU's"
)

WORK = """
import resource
import torch
from candy_monai.allocation import freed_memory_kept, give_back_freed_memory

def fetched():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(5_000_000)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize()

def held():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("RssAnon"))
"""
TENSOR = 4 * 5_000_000


def number(code: str, **environment: str) -> int:
    """Run code in a process of its own and return the number that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", WORK + code], capture_output=True, text=True, check=True, env=environment
    )
    return int(done.stdout)


def test_memory_that_is_given_back_is_fetched_each_time():
    assert number("give_back_freed_memory(); fetched(); print(fetched())") >= 9 * TENSOR


def test_what_the_user_chose_for_the_allocator_stays():
    meanwhile = """
with freed_memory_kept():
    fetched()
    print(fetched())
"""
    assert number(meanwhile, MALLOC_MMAP_THRESHOLD_="1000000") >= 9 * TENSOR


def test_blocks_that_live_on_leave_no_holes_when_memory_is_given_back():
    holes = """
blocks = [torch.ones(500_000) for _ in range(80)]
before, kept = held(), blocks[::8]
del blocks
print(before - held())
"""
    assert number("give_back_freed_memory()" + holes) > 0.95 * 70 * 4 * 500_000


def test_memory_that_is_kept_meanwhile_is_not_fetched_again_and_given_back_in_the_end():
    meanwhile = """
with freed_memory_kept():
    fetched()
    print(fetched())
"""
    assert number(meanwhile) < 2 * TENSOR
    afterwards = """
before = held()
with freed_memory_kept():
    blocks = [torch.ones(5_000_000) for _ in range(6)]
    last = torch.ones(1000)  # nothing above it is ever given back by itself
    del blocks
print(held() - before)
"""
    assert number(afterwards) < TENSOR


def test_of_two_that_keep_freed_memory_the_last_one_gives_it_back():
    nested = """
with freed_memory_kept():
    with freed_memory_kept():
        fetched()
    print(fetched())
"""
    assert number(nested) < 2 * TENSOR


def test_memory_that_is_to_be_given_back_is_not_kept_meanwhile_either():
    meanwhile = """
with freed_memory_kept():
    give_back_freed_memory()
    fetched()
    before = fetched()
with freed_memory_kept():
    print(min(before, fetched()))
"""
    assert number(meanwhile) >= 9 * TENSOR
