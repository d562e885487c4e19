"""Under torchrun: a fault in one process is left out by all; see test_stability_split.

`python guarded_run.py OUT FOLDER` writes what every process ended with, replicated and sharded.
"""

import json
import math
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import hf_tfopt as tfo
from tests.callbacks.distributed_run import model_of
from tests.callbacks.faults import Fault
from tests.callbacks.runs import trainer_with

CASES = {
    "skip-loss": ("skip", "loss"),
    "rollback-activation": ("rollback", "activation"),
    "skip-weight": ("skip", "weight"),
    "stop-loss": ("stop", "loss"),
}


def guarded(kind: str, folder: Path, action: Any, place: str) -> dict[str, Any]:
    """Three steps and a fault in the second of them, in process 1 alone."""
    guard = tfo.StabilityGuard(action, snapshot_every=1)
    trainer = trainer_with(
        folder,
        [guard],
        model=model_of(kind, folder.parent),
        per_device_train_batch_size=2,
        max_steps=3,
    )
    fault = Fault(place, math.nan, (2,), rank=1)
    fault.into(trainer)
    trainer.train()
    parameters = trainer.model.parameters()
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in parameters]
    weights = torch.cat([tensor.detach().flatten() for tensor in whole]).double()
    events = [e for entry in trainer.state.log_history for e in entry.get("events", [])]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "weights": str(weights.norm().item()),
        "is_finite": bool(weights.isfinite().all()),
        "steps": trainer.state.global_step,
        "events": events,
        "is_nan": [math.isnan(loss) for loss in losses],
        "remembered": json.loads(json.dumps(guard.remembered)),
    }


def guarded_each(kind: str, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (action, place) in CASES.items():
        if kind == "fsdp2" and place == "weight":
            continue  # a fault in a shard needs another injection
        try:
            found[name] = guarded(kind, folder / f"{kind}-{name}", action, place)
        except Exception:
            found[name] = {"error": traceback.format_exc()}
    return found


def main(out: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    found = {kind: guarded_each(kind, Path(folder)) for kind in ("ddp", "fsdp2")}
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, found)
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(every))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
