"""CausalLMCollator: processes that share one model try it out together, or none does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_all_processes_try_a_sharded_model_out() -> None:
    """Though process 0, which had the weights before, has done so: the other one would wait."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = [*launch, "--master_port", str(29500 + os.getpid() % 1000)]
    command += [str(ROOT / "tests/data/sharded_trial.py")]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "alike" in done.stdout
