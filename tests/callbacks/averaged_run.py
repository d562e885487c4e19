"""Under torchrun: averages are the same after a stop, and of shards; see test_averaging.

`python averaged_run.py OUT FOLDER` writes {whole, again} of every process.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import hf_tfopt as tfo
from hf_tfopt.callbacks.averaged_weights import copies, load_parts, move_toward, save_parts
from tests.callbacks.runs import trainer_with, weights_of


def trained(folder: Path, resume: str | None = None) -> list[float]:
    """All weights after training with DDP, and the losses of evaluations."""
    trainer = trainer_with(
        folder / "run",
        [tfo.ExponentialAverage(0.3), tfo.StopOnPlateau("eval_loss", patience=9)],
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train(resume_from_checkpoint=resume)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    return [*weights_of(trainer.model).tolist(), *losses]


def check_shards(folder: Path) -> None:
    """A file of shards is that of whole tensors, and comes back as shards; 7 and 3 are uneven."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 3))
    whole = [parameter.detach().clone() for parameter in model.parameters()]
    fully_shard(model)
    names, parameters = zip(*model.named_parameters(), strict=True)
    averages = copies(parameters)
    move_toward(averages, copies(parameter * 3 for parameter in parameters), 0.5)
    save_parts(folder / "shards.safetensors", names, [averages], dist.get_rank() == 0)
    dist.barrier()
    (found,) = load_parts(folder / "shards.safetensors", names, parameters)
    for shard, average, weight in zip(found, averages, whole, strict=True):
        assert torch.equal(shard.to_local(), average.to_local())
        torch.testing.assert_close(shard.full_tensor(), 2 * weight)
    tfo.load_average(model, folder, "shards.safetensors")
    for parameter, weight in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.full_tensor(), 2 * weight)


def main(out: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    whole = trained(Path(folder))
    again = trained(Path(folder), f"{folder}/run/checkpoint-2")
    check_shards(Path(folder))
    every: list[list[list[float]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(every, [whole, again])
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(every))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
