"""How many threads a compiled loop is given: of torch's pool, see pool.h."""

import ctypes
import os

import torch

_is_forked = False


def num_threads(size: int, per_thread: int) -> ctypes.c_int:
    """As many of torch's threads as have so much to do, 1 at least.

    Negative in a process that was forked since this module was imported: as many that are new.
    Torch's threads stay behind, and the pool would wait for them for ever.

    Args:
        size: of the whole loop.
        per_thread: less is not worth a thread.
    """
    threads = max(1, min(torch.get_num_threads(), size // per_thread))
    return ctypes.c_int(-threads if _is_forked else threads)


def _forget_the_pool() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_pool)
