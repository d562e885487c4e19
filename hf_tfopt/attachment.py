"""What an existing Trainer can be given: an exact loss, callbacks, a schedule."""

from collections.abc import Callable, Iterable
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_utils import unwrap_peft_model

from hf_tfopt.batch_slot import adopt_batches
from hf_tfopt.callback_host import become_host
from hf_tfopt.callbacks.base import Callback
from hf_tfopt.callbacks.evaluation_weights import EvaluationWeights
from hf_tfopt.data.batch_plan import BatchPlan
from hf_tfopt.losses.for_trainer import loss_func
from hf_tfopt.losses.reduction import IGNORE_INDEX
from hf_tfopt.objectives.base import Objective
from hf_tfopt.schedules.for_trainer import ScheduleSpec
from hf_tfopt.slots import (
    adopt_callbacks,
    adopt_data,
    adopt_evaluation_weights,
    checked_schedule,
    own_scheduler,
    refuse_what_deepspeed_drops,
)
from hf_tfopt.trainer import TfoptMixin


def attach(
    trainer: Trainer,
    loss: Callable[..., Tensor] | None = None,
    callbacks: Iterable[TrainerCallback] = (),
    schedule: ScheduleSpec | str | None = None,
    objective: Objective | str | None = None,
    sampler: BatchPlan | None = None,
    curriculum: BatchPlan | Callback | None = None,
) -> Trainer:
    """Give an existing Trainer an exact loss or an objective and what else is ours, in place.

    Equals constructing it with `compute_loss_func=loss, callbacks=callbacks`, but the callbacks
    come before the reporters, and a collator that needs to know the epoch is told. An objective
    needs more than that slot: with one, the trainer becomes an instance of `TfoptMixin` before its
    own class, as if it had been made from `class Ours(TfoptMixin, type(trainer))`.

    Args:
        trainer: any instance of `transformers.Trainer`, before `train()`.
        loss: for `compute_loss_func`; none: `loss_func("cross_entropy")`.
        callbacks: put in front of those it has, once each.
        schedule: `tfo.schedule(...)` or a name of `SCHEDULES`; None: the one it has.
        objective: as of `TfoptTrainer`, in place of a loss.
        sampler: as of `TfoptTrainer`.
        curriculum: as of `TfoptTrainer`.

    Returns:
        The same trainer.

    Raises:
        ValueError: the trainer has a loss, an objective or a schedule already, or smooths labels
            itself.
    """
    if trainer.compute_loss_func is not None and (loss is not None or objective is not None):
        raise ValueError("the trainer has a compute_loss_func already; attach would replace it")
    if loss is not None and objective is not None:
        raise ValueError("both a loss and an objective were given; only one can be trained")
    if trainer.label_smoother is not None:
        raise ValueError(
            "args.label_smoothing_factor would silently be ignored beside an attached loss; set it "
            "to 0 and attach loss_func('cross_entropy', label_smoothing=...)"
        )
    if objective is not None:
        _attach_objective(trainer, objective)
    has_objective = isinstance(trainer, TfoptMixin) and (
        trainer.training_objective is not None or trainer.is_automatic
    )
    if has_objective and loss is not None:
        raise ValueError(
            f"{type(trainer).__name__} trains its objective and would ignore an attached loss; "
            "give it objective=None, or the loss as an option of its objective"
        )
    refuse_what_deepspeed_drops(trainer, has_schedule=schedule is not None)
    if schedule is not None:
        _attach_schedule(trainer, checked_schedule(trainer, schedule))
    adopt_data(trainer)
    if trainer.compute_loss_func is None and not has_objective:
        _adapt_collator(trainer)
        trainer.compute_loss_func = loss or loss_func("cross_entropy")
    handler = trainer.callback_handler
    for callback in reversed(list(callbacks)):
        if callback in handler.callbacks:
            continue
        if isinstance(callback, EvaluationWeights):  # its place is behind the host's
            trainer.add_callback(callback)
            continue
        handler.callbacks.insert(0, callback)
        callback.on_init_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
    adopt_evaluation_weights(trainer)
    become_host(trainer)
    adopt_callbacks(trainer)
    adopt_batches(trainer, sampler, curriculum)
    return trainer


def _attach_objective(trainer: Any, objective: Objective | str) -> None:
    kind = type(trainer)
    if not isinstance(trainer, TfoptMixin):
        # What it has been given until now is its own: nothing is constructed again.
        trainer.__class__ = type(f"Tfopt{kind.__name__}", (TfoptMixin, kind), {})
        trainer.schedule = None
    elif trainer.training_objective is not None:
        raise ValueError(
            f"{kind.__name__} trains {type(trainer.training_objective).__name__} already; give it "
            "the other objective when it is constructed"
        )
    trainer.adopt_objective(objective)


def _attach_schedule(trainer: Any, schedule: ScheduleSpec) -> None:
    if isinstance(trainer, TfoptMixin):
        trainer.schedule = schedule
        return

    def create_scheduler(
        num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        # DeepSpeed asks a copy of the trainer, which has this function too, for another optimizer
        asked = trainer if optimizer is None else copy(trainer)
        if asked is not trainer:
            asked.lr_scheduler = None
        return own_scheduler(asked, schedule, num_training_steps, optimizer)

    trainer.create_scheduler = create_scheduler


class _ExactBatches:
    """A collator whose batches suit a `compute_loss_func`, which sees outputs and labels alone.

    Encoder-decoders keep the decoder inputs that they would make of the labels, which the host
    takes out of the batch. Causal models lose the label of the first position: it is never a
    target, but the host counts it for models it does not know to shift labels (GPT-2).
    """

    def __init__(self, collator: Callable[[Any], dict[str, Any]], model: Any, is_causal: bool):
        self.collator = collator
        self.model = model
        self.is_causal = is_causal

    def __call__(self, features: Any) -> dict[str, Any]:
        batch = self.collator(features)
        if "labels" not in batch:
            return batch
        if self.is_causal:
            batch["labels"] = batch["labels"].clone()
            batch["labels"][..., 0] = IGNORE_INDEX
        elif "decoder_input_ids" not in batch:
            shifted = self.model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
            batch["decoder_input_ids"] = shifted
        return batch


def _adapt_collator(trainer: Any) -> None:
    model = unwrap_peft_model(trainer.model)
    is_causal = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    if is_causal or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        trainer.data_collator = _ExactBatches(trainer.data_collator, model, is_causal)
