"""Workers of pytest-xdist share the machine: each computes with one thread."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # read when torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
