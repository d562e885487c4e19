"""How many threads a compiled loop is given: of torch's pool, see pool.h."""

import ctypes
import os

import torch

_is_forked = False


def num_threads(size: int, per_thread: int) -> ctypes.c_int:
    """As many of torch's threads as have so much to do; 1 in a forked process, which has no pool.

    Args:
        size: of the whole loop.
        per_thread: less is not worth a thread.
    """
    most = 1 if _is_forked else torch.get_num_threads()
    return ctypes.c_int(max(1, min(most, size // per_thread)))


def _forget_the_pool() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_pool)
