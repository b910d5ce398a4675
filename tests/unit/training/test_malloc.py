"""Freed memory is kept, so that using it again costs no page faults."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

if platform.libc_ver()[0] != "glibc":
    pytest.skip("needs glibc", allow_module_level=True)

CODE = """
import resource
from llamita.training.malloc import keeping_freed_memory

fill, size = b"x", 50 << 20

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        fill * size
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
with keeping_freed_memory():
    faults()
    inside = faults()
print(before, inside, faults())
"""


def count_faults(**variables: str) -> list[int]:
    """Page faults of a loop that takes 50 MiB and frees them, before, within and after the context."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment | variables, capture_output=True, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


def test_memory_that_is_used_again_is_not_faulted_in_again() -> None:
    before, inside, after = count_faults()
    assert before > 100  # with pages of 2 MiB it would be 125
    assert inside < before / 10
    assert after > before / 2  # and then the process is as it was


@pytest.mark.parametrize("variable", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_the_settings_of_the_user_stay(variable: str) -> None:
    before, inside, _ = count_faults(**{variable: "1"})
    assert inside > before / 2
