"""Our optimizers under the real DeepSpeed, where it is installed (the extra `deepspeed`)."""

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed not installed")

ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


@cache
def said(stage: int, name: str) -> Any:
    """What `zero.py` prints last. The first run builds an operation of DeepSpeed's, in minutes."""
    environment = {**os.environ, **ALONE, "DS_ACCELERATOR": "cpu", "MASTER_PORT": "29571"}
    command = [sys.executable, "-m", "tests.optimizers.zero", str(stage), name]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads([line for line in run.stdout.splitlines() if line[:1] in '["'][-1])


@pytest.mark.invariant
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", ["adam", "adamw", "lion", "sgd"])
def test_zero_trains_as_one_process_does(stage: int, name: str) -> None:
    alone, under_zero = said(0, name), said(stage, name)
    assert len(alone) == len(under_zero) == 6
    for expected, found in zip(alone, under_zero, strict=True):
        assert found.keys() == expected.keys()
        for key in {"loss", "grad_norm", *(k for k in found if "/" in k)}:
            # sums in another order: roundings of 6e-8 over six updates
            assert found[key] == pytest.approx(expected[key], rel=1e-6), key


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", ["lamb", "muon", "adafactor", "schedule_free"])
def test_what_needs_whole_tensors_refuses_flat_ones(stage: int, name: str) -> None:
    assert "an engine" in said(stage, name) and "use DDP or FSDP2" in said(stage, name)
