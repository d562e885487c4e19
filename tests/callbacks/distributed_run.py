"""Under torchrun: train with every callback in turn, replicated or sharded; see test_distributed.

`python distributed_run.py OUT FOLDER NAME ...` writes {kind: {name: {weights, logs, error}}};
the name "" stands for no callback, "monitors" for all monitors together.
"""

import json
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM
from transformers.distributed import DistributedConfig

from hf_tfopt.callbacks.base import Monitor
from tests.callbacks.examples import EXAMPLES
from tests.callbacks.runs import history_of, trainer_with
from tests.models import NO_DROPOUT, SIZES


def callbacks_of(name: str) -> list[Any]:
    if name != "monitors":
        return [EXAMPLES[name]()] if name else []
    made = [make() for make in EXAMPLES.values()]
    return [callback for callback in made if isinstance(callback, Monitor)]


def save_model(folder: Path) -> None:
    """Nothing is tied: of tied weights that 5.23 shards, the second stays what it was."""
    torch.manual_seed(0)
    config = BertConfig(**SIZES, **NO_DROPOUT, tie_word_embeddings=False)
    BertForMaskedLM(config).save_pretrained(folder / "model")


def model_of(kind: str, folder: Path) -> Any:
    config = DistributedConfig(fsdp_size=2) if kind == "fsdp2" else None
    return AutoModelForMaskedLM.from_pretrained(folder / "model", distributed_config=config)


def run(name: str, kind: str, folder: Path) -> dict[str, Any]:
    """Four steps of eight rows: two processes x two micro-batches x two rows, or one process."""
    model = model_of(kind, folder)
    sharded = [p for p in model.parameters() if isinstance(p, DTensor)]  # whole after a forward
    trainer = trainer_with(
        folder / (name or "none"),
        callbacks_of(name),
        model=model,
        per_device_train_batch_size=4 if kind == "alone" else 2,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    weights = torch.cat([tensor.detach().flatten() for tensor in whole]).double()
    generator = torch.Generator().manual_seed(7)
    direction = torch.randn(len(weights), generator=generator, dtype=torch.float64)
    logs = [
        {key: value for key, value in entry.items() if isinstance(value, float)}
        for entry in history_of(trainer)
    ]
    numbers = [weights.norm().item(), (weights @ direction).item()]
    return {"weights": numbers, "logs": logs, "is_sharded": bool(sharded)}


def run_or_error(name: str, kind: str, folder: Path) -> dict[str, Any]:
    try:
        return run(name, kind, folder)
    except Exception:
        return {"error": traceback.format_exc()}


def main(out: str, folder: str, *names: str) -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {
        kind: {name: run_or_error(name, kind, Path(folder) / kind) for name in names}
        for kind in ("ddp", "fsdp2")
    }
    every: list[Any] = [None] * dist.get_world_size() if dist.is_initialized() else [results]
    if dist.is_initialized():
        dist.all_gather_object(every, results)
    if os.environ.get("RANK", "0") == "0":
        Path(out).write_text(json.dumps(every))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
