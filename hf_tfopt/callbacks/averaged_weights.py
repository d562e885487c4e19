"""Averages of a model's weights over training: the formulas, and the file that a checkpoint keeps.

The file holds one or several tensors for each parameter, `<number>/<name>`; the average is their
mean. An exponential average is one tensor, a window of the latest weights several.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_tfopt.callbacks.snapshot import copied
from hf_tfopt.callbacks.trained import forget_gathered
from hf_tfopt.callbacks.vitals import gathered
from hf_tfopt.optimizers.foreach import foreach_lerp
from hf_tfopt.optimizers.sharding import local, shard_as, whole
from hf_tfopt.registry import nearest

FILE = "weight_average.safetensors"


def decay_after(num_averaged: int, decay: float) -> float:
    """min(decay, (1 + n) / (10 + n)): the share that an exponential average of n weights keeps."""
    return min(decay, (1 + num_averaged) / (10 + num_averaged))


def is_averaged(step: int, start: float, every: int, max_steps: int) -> bool:
    """Whether the weights after a step are averaged: one of every so many after the start.

    Args:
        step: from 1.
        start: what passes before: below 1 a share of the run, else steps.
        every: steps.
        max_steps: of the run.
    """
    since = step - (round(start * max_steps) if start < 1 else int(start))
    return since > 0 and since % every == 0


@torch.no_grad()
def copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    """A copy of each tensor, in fp32 or wider."""
    return [
        tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
        for tensor in tensors
    ]


@torch.no_grad()
def move_toward(averages: Sequence[Tensor], weights: Sequence[Tensor], share: float) -> None:
    """Move averages: a += share · (weight - a), in place, in the averages' precision."""
    pairs = [(local(a), local(w)) for a, w in zip(averages, weights, strict=True)]
    alike = [pair for pair in pairs if pair[0].dtype == pair[1].dtype]
    if alike:
        foreach_lerp([a for a, _ in alike], [w for _, w in alike], share)
    for average, weight in pairs:
        if average.dtype != weight.dtype:  # one at a time: no second copy of the model in fp32
            average.lerp_(weight.to(average.dtype), share)


@torch.no_grad()
def mean(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The mean over the parts of each tensor, in fp32 or wider; of one part, itself."""
    if len(parts) == 1:
        return list(parts[0])
    total = copies(parts[0])
    for number, part in enumerate(parts[1:], start=2):
        move_toward(total, part, 1 / number)
    return total


@torch.no_grad()
def put(model: nn.Module, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write values into parameters in place, in the parameters' own precision."""
    pairs = zip(parameters, values, strict=True)
    for parameter, value in pairs:
        local(parameter).copy_(local(value))
    forget_gathered(model)


def copied_parts(
    parts: Sequence[Sequence[Tensor]], known: Sequence[Sequence[Tensor]], is_on_cpu: bool
) -> list[list[Tensor]]:
    """This process's shards of the parts, copied; in the memory of the copies known, if any."""
    before = known or [[None] * len(part) for part in parts]
    return [
        [copied(tensor, old, is_on_cpu) for tensor, old in zip(part, olds, strict=True)]
        for part, olds in zip(parts, before, strict=True)
    ]


@torch.no_grad()
def put_parts(parts: list[list[Tensor]], saved: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Write what `copied_parts` has copied back, in place; nothing, if there was none."""
    for part, olds in zip(parts, saved, strict=False):
        for tensor, old in zip(part, olds, strict=True):
            local(tensor).copy_(old, non_blocking=True)
    return parts if saved else []


def find(folders: Sequence[Path], file: str, step: int | None = None) -> Path | None:
    """The first of the folders' files that every process finds, of the step if one is given."""
    paths = [folder / file for folder in folders]
    found = gathered([path.is_file() and step in (None, _step_of(path)) for path in paths])
    return next((path for i, path in enumerate(paths) if all(one[i] for one in found)), None)


def _step_of(path: Path) -> int | None:
    with safe_open(path, "pt") as opened:
        step = (opened.metadata() or {}).get("step")
    return None if step is None else int(step)


def save_parts(
    path: Path,
    names: Sequence[str],
    parts: Sequence[Sequence[Tensor]],
    is_writer: bool,
    step: int = 0,
) -> None:
    """Write a file as a whole or not at all. Every process calls it, one or some write.

    Args:
        path: of the file; its folder is made.
        names: of the parameters.
        parts: tensors for each of the parameters.
        is_writer: whether this process writes.
        step: of the checkpoint, which the file tells.
    """
    tensors: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        for name, tensor in zip(names, part, strict=True):
            gathered = whole(tensor)
            if is_writer:
                tensors[f"{number}/{name}"] = gathered.detach().cpu().contiguous()
    if not is_writer:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, draft, metadata={"step": str(step)})
    os.replace(draft, path)


def load_parts(
    path: Path, names: Sequence[str], parameters: Sequence[Tensor]
) -> list[list[Tensor]]:
    """What `save_parts` wrote, on the devices of the parameters and divided as they are.

    Raises:
        ValueError: the file is of other parameters, or of other shapes.
    """
    tensors = load_file(path)
    found = {key.partition("/")[2]: tensor.shape for key, tensor in tensors.items()}
    _check_names(path, {*found}, {*names})
    for name, parameter in zip(names, parameters, strict=True):
        if found[name] != parameter.shape:
            raise ValueError(
                f"{path}: {name} has the shape {list(found[name])}, in the model it has "
                f"{list(parameter.shape)}"
            )
    numbers = sorted({int(key.partition("/")[0]) for key in tensors})
    pairs = list(zip(names, parameters, strict=True))
    return [[_placed(tensors[f"{n}/{name}"], like) for name, like in pairs] for n in numbers]


def load_average(model: Any, checkpoint: str | Path, file: str = FILE) -> Any:
    """Put the average that a checkpoint holds into a model; returns the model.

    Checkpoints hold the weights that are trained, from which a run goes on, and beside them the
    average. Equals `model.load_state_dict(averages, strict=False)`.

    Args:
        model: of the class that was trained, with the same adapters.
        checkpoint: the folder `checkpoint-<step>`.
        file: with several averages in a run the second is in `weight_average_2.safetensors`.

    Raises:
        ValueError: no such file, or it is of another model.

    Paper: none.
    """
    path = Path(checkpoint) / file
    if not path.is_file():
        there = sorted(found.name for found in Path(checkpoint).glob("weight_average*"))
        raise ValueError(f"{path} is not there; averages in this folder: {there or 'none'}")
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    names = sorted({key.partition("/")[2] for key in load_file(path)})
    for name in names:
        if name not in parameters:
            raise ValueError(
                f"{path} has an average of {name!r}, which {type(model).__name__} does not have"
                f"{nearest(name, parameters)}: give it a model of the class that was trained"
            )
    chosen = [parameters[name] for name in names]
    put(model, chosen, mean(load_parts(path, names, chosen)))
    return model


def _placed(tensor: Tensor, like: Tensor) -> Tensor:
    return shard_as(like, tensor.to(local(like).device))


def _check_names(path: Path, found: set[str], wanted: set[str]) -> None:
    if found == wanted:
        return
    name = min(found ^ wanted)
    where = "the file alone" if name in found else "the model alone"
    raise ValueError(
        f"{path} has averages of {len(found)} parameters, {len(wanted)} are trained now, and "
        f"{name!r} is in {where}{nearest(name, wanted if name in found else found)}: train the "
        "same part of the same model, or begin a new run"
    )
