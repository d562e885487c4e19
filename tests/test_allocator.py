import platform
import subprocess
import sys

import pytest

from hf_tfopt.allocator import tune_allocator

PROBE = """
import ctypes, sys
from hf_tfopt.allocator import tune_allocator

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                ["arena", "ordblks", "smblks", "hblks", "hblkhd", *map(str, range(5))]]

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.mallinfo2.restype = Mallinfo2
if sys.argv[1] == "tuned":
    assert tune_allocator()
before = libc.mallinfo2().hblks
assert libc.malloc(256 * 2**20)
print(libc.mallinfo2().hblks - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_large_block_comes_from_the_heap_and_no_longer_from_a_mapping():
    def num_mapped(setting):
        command = [sys.executable, "-c", PROBE, setting]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert (num_mapped("plain"), num_mapped("tuned")) == (1, 0)


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert tune_allocator() is False
