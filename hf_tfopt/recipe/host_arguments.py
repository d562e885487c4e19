"""What a recipe stands for: TrainingArguments, optimizer, schedule, callbacks and sampler."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from hf_tfopt.callbacks import CALLBACKS
from hf_tfopt.callbacks.live_log import LiveLog
from hf_tfopt.callbacks.monitors import monitors
from hf_tfopt.callbacks.stability import StabilityGuard
from hf_tfopt.data import SAMPLERS
from hf_tfopt.data.batch_plan import BatchPlan
from hf_tfopt.recipe.model_keys import CheckpointingKeys
from hf_tfopt.recipe.selection import selection_arguments, selection_callbacks
from hf_tfopt.recipe.training_keys import TrainingKeys
from hf_tfopt.recipe.typed_values import listed
from hf_tfopt.registry import Registry, check_name
from hf_tfopt.run.facts import has_fast_bfloat16
from hf_tfopt.schedules.for_trainer import ScheduleSpec, schedule


def training_arguments(
    recipe: TrainingKeys,
    total_steps: int,
    device: torch.device,
    kind: type[TrainingArguments] = TrainingArguments,
    **others: Any,
) -> TrainingArguments:
    """Number, precision and rhythm of the steps, in the host's names.

    Args:
        recipe: the run's recipe; optimizer and schedule have slots of their own in the Trainer.
        total_steps: of the whole run, `recipe.total_steps(...)`.
        device: where it trains.
        kind: the class of the arguments.
        others: arguments that no recipe has a key for, or that are to be otherwise.

    Raises:
        ValueError: if warm-up and decay do not fit into the steps, or a tracker is not there.
    """
    recipe.schedule_steps(total_steps)
    is_auto = recipe.precision == "auto"
    eval_steps = recipe.eval_steps or math.ceil(total_steps / 10)
    arguments: dict[str, Any] = {
        "output_dir": str(recipe.output_dir),
        "max_steps": total_steps,
        "per_device_train_batch_size": recipe.batch_size,
        "per_device_eval_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "max_grad_norm": recipe.max_grad_norm,
        "use_cpu": device.type == "cpu",
        "bf16": has_fast_bfloat16(device) if is_auto else recipe.precision == "bf16",
        "seed": recipe.seed,
        "logging_steps": recipe.logging_steps,
        "logging_nan_inf_filter": False,  # the host would log a loss that is not a number as 0
        "eval_strategy": "steps",
        "eval_steps": eval_steps,
        "prediction_loss_only": True,
        "save_steps": recipe.save_steps or eval_steps,
        "save_total_limit": 2,
        "report_to": _trackers(recipe.report_to),
    }
    return kind(**{**arguments, **selection_arguments(recipe), **others})


def checkpointing_arguments(recipe: CheckpointingKeys) -> dict[str, Any]:
    """Layers computed twice; not the reentrant way, which needs inputs that have a gradient."""
    if not recipe.gradient_checkpointing:
        return {}
    kind = {"use_reentrant": False}
    return {"activation_checkpointing": True, "activation_checkpointing_kwargs": kind}


def run_optimizer(recipe: TrainingKeys) -> dict[str, Any]:
    """The arguments of `tfo.optimizer` or `tfo.build_optimizer` that a recipe stands for."""
    adamw = {} if recipe.adamw_learning_rate is None else {"adamw_lr": recipe.adamw_learning_rate}
    keys = {
        "name": recipe.optimizer,
        "lr": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "layer_decay": recipe.layer_decay,
        "multipliers": recipe.multipliers,
        **adamw,
    }
    return keys | _apart("optimizer_options", recipe.optimizer_options, keys)


def run_schedule(recipe: TrainingKeys) -> ScheduleSpec:
    """The learning rate over the recipe's run, for `TfoptTrainer(schedule=...)`."""
    decay = recipe.decay_fraction
    keys: dict[str, Any] = {} if decay is None else {"decay_fraction": decay}
    keys["warmup_steps"] = recipe.warmup_steps
    return schedule(
        recipe.schedule, **keys, **_apart("schedule_options", recipe.schedule_options, keys)
    )


def run_callbacks(recipe: TrainingKeys) -> list[Any]:
    """The recipe's monitors, guard and callbacks, early stopping and the log on disk, new ones.

    Args:
        recipe: the run's recipe.

    Raises:
        ValueError: an unknown callback, or options that it does not take.
    """
    watching: list[Any] = monitors() if recipe.monitors == "default" else []
    built = built_entries("callbacks", CALLBACKS, recipe.callbacks)
    has_own = any(isinstance(callback, StabilityGuard) for callback in built)
    guard: Any = recipe.guard  # one of the actions, by the recipe's own check
    guards = [] if guard == "off" or has_own else [StabilityGuard(guard)]
    return [*watching, *guards, *built, *selection_callbacks(recipe), LiveLog()]


def run_sampler(recipe: TrainingKeys) -> BatchPlan | None:
    """Which rows make up each batch, for `TfoptTrainer(sampler=...)`; None: the host's own.

    Its seed is the recipe's, unless its options say another.

    Raises:
        ValueError: options that it does not take.
    """
    return next(iter(built_entries("sampler", SAMPLERS, recipe.sampler, seed=recipe.seed)), None)


def built_entries(
    key: str, table: Registry, entries: Mapping[str, Any] | None, **defaults: Any
) -> list[Any]:
    """The entries of a table that a key names, each with its options, or these.

    Raises:
        ValueError: an unknown name, or options that the entry does not take.
    """
    found: list[Any] = []
    for name, options in (entries or {}).items():
        if not isinstance(options or {}, Mapping):
            raise ValueError(f"{key}: {name}: got {options!r}, must be its options, or {{}}")
        try:
            found.append(table.build(name, **{**defaults, **(options or {})}))
        except TypeError as error:  # an option that it needs is not there
            raise ValueError(f"{key}: {name}: {error}") from error
    return found


def _apart(key: str, options: Mapping[str, Any] | None, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an entry, which have no key of their own in the recipe."""
    for name in options or {}:
        if name in keys:
            raise ValueError(f"{key}: {name} has a key of its own in a recipe; set that one")
    return dict(options or {})


def _trackers(names: str) -> list[str]:
    """The trackers of a recipe, known to the host and installed."""
    trackers = listed(names)
    if trackers == ["none"]:
        return []
    for name in trackers:
        check_name("tracker (report_to)", name, sorted({*INTEGRATION_TO_CALLBACK, "none"}))
        if name not in get_available_reporting_integrations():
            raise ValueError(f"report_to: {name} is not installed")
    return trackers
