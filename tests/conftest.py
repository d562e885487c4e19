"""What makes the tests quick: one thread for each worker, nothing swept or started twice."""

import gc
import os
from collections.abc import Generator

import pytest

from tests.processes import TwoInterpreters

if "PYTEST_XDIST_WORKER" in os.environ:  # read when torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """All that is imported stays, so the host's `gc.collect` before a training can pass it over."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def two_interpreters() -> Generator[TwoInterpreters]:
    """Programs on two processes: `two_interpreters.run(program, *arguments)`."""
    with TwoInterpreters() as started:
        yield started
