import platform
import subprocess
import sys

import pytest

from deeplab_lightning.memory import keep_freed_memory

FAULTS = """
import resource, sys
import torch
from deeplab_lightning.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(1 << 24)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_the_next_tensor_takes_the_memory_of_the_last() -> None:
    faults = {how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how])) for how in ("keep", "default")}
    assert faults["keep"] < 100
    # Pages of 2 MB, where the system gives them without being asked, are 32 faults.
    assert faults["default"] > faults["keep"]


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
