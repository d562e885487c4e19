"""What is told of a bad step: where it went wrong, and on which examples."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import has_length

from hf_tfopt.callbacks.dataset_rows import dataset_rows
from hf_tfopt.callbacks.training import Training
from hf_tfopt.callbacks.vitals import Body, Vitals, gathered


def cause_of(vitals: Vitals, spikes: Sequence[str]) -> str | None:
    """What is wrong with a step, in two or three words; None: nothing.

    Args:
        vitals: of the step.
        spikes: the series that have one in it.
    """
    if vitals.num_bad_losses:
        return "non-finite loss"
    if not math.isfinite(vitals.gradient_norm):
        return "non-finite gradient"
    return f"spike of {' and '.join(spikes)}" if spikes else None


def facts_of(
    training: Training, vitals: Vitals, losses: Sequence[Tensor], body: Body, weights: list[str]
) -> dict[str, Any]:
    """All that is told of a bad step, before its update.

    Args:
        training: of the step.
        vitals: of the step.
        losses: of this process's micro-batches; empty where they were not seen.
        body: of the model.
        weights: the blocks whose weights are not finite.
    """
    return {
        "step": training.state.global_step + 1,
        "loss": "nan" if vitals.num_bad_losses else _shown(vitals.loss),
        "gradient_norm": _shown(vitals.gradient_norm),
        "blocks": body.bad_blocks(vitals.norms),
        "weights": weights,
        "batches": suspects(training, losses),
    }


def suspects(training: Training, losses: Sequence[Tensor]) -> list[dict[str, Any]]:
    """The micro-batches of all processes whose loss is not finite; all if every loss is.

    Args:
        training: before the update.
        losses: of this process's micro-batches; empty where they were not seen.

    Returns:
        Of each its `process`, and what `step_batches` tells.
    """
    every = gathered(step_batches(training, torch.stack([*losses]).tolist() if losses else []))
    found = [{"process": i, **one} for i, batches in enumerate(every) for one in batches]
    return [one for one in found if isinstance(one.get("loss"), str)] or found


def step_batches(training: Training, losses: Sequence[float]) -> list[dict[str, Any]]:
    """What is known of this process's micro-batches in the step that is not counted yet.

    Args:
        training: before the update.
        losses: of the micro-batches; empty where they were not seen.

    Returns:
        Of each `micro_batch` (its number in the step) and `loss` (text where it is not finite) if
        it was seen; `epoch` and `batch` (its position in the epoch) where the data have a length;
        and `rows` of the dataset where they can be known. All are counted from 0.
    """
    number = len(losses) or training.args.gradient_accumulation_steps
    found: list[dict[str, Any]] = [{"micro_batch": i} for i in range(number)]
    for one, loss in zip(found, losses, strict=False):
        one["loss"] = _shown(loss)
    if training.args.ignore_data_skip or not has_length(training.data):
        return found
    epoch, first = divmod(
        round((training.state.epoch or 0.0) * len(training.data)), len(training.data)
    )
    found = found[: len(training.data) - first]  # the last step of an epoch may be shorter
    rows = dataset_rows(training.data, epoch, range(first, first + len(found)))
    for i, one in enumerate(found):
        one |= {"epoch": epoch, "batch": first + i}
        if rows is not None:
            one["rows"] = rows[i]
    return found


def described(kind: str, facts: dict[str, Any]) -> str:
    """A sentence's beginning, with the numbers."""
    where = ", ".join(facts["weights"] or facts["blocks"])
    found = f"{kind} in {where}" if where else kind
    bad = [one for one in facts["batches"] if isinstance(one.get("loss"), str)]
    if bad:
        names = [f"{one['micro_batch']} of process {one['process']}" for one in bad]
        found += f", micro-batch {', '.join(names)}"
    return f"{found} (loss {facts['loss']}, gradient norm {facts['gradient_norm']})"


def _shown(value: float | None) -> float | str | None:
    """A number as JSON may hold it: text where it is not finite."""
    return value if value is None or math.isfinite(value) else str(value)
