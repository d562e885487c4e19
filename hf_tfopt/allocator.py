"""The C allocator, set for training on a CPU: freed memory is kept for the next step.

glibc gives every large block back to the system when it is freed and asks for it again one step
later, and the system then clears each of its pages. Kept blocks need no clearing; the price is that
the process holds the memory of its largest moment until it ends.
"""

import ctypes
import platform

# glibc's malloc.h; the numbers are its ABI.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_LARGEST_INT = 2**31 - 1


def tune_allocator() -> bool:
    """Keep freed memory in the process (`mallopt`, glibc only); returns whether that was done.

    Call it before torch is imported: blocks that are mapped already stay mapped. Elsewhere than on
    glibc it does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = (
        (_M_MMAP_MAX, 0),  # large blocks come from the heap too
        (_M_TRIM_THRESHOLD, _LARGEST_INT),  # the heap's free end is not given back
        (_M_TOP_PAD, 64 * 2**20),  # and grows by 64 MiB at a time
    )
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
