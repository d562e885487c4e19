"""How a Trainer comes by its objective: checked, and the same on every process."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from hf_tfopt.losses.reduction import unlabelled
from hf_tfopt.objectives import OBJECTIVES
from hf_tfopt.objectives.automatic import automatic
from hf_tfopt.objectives.base import Objective

logger = logging.getLogger(__name__)

MAX_STEPS_WITHOUT_TARGETS = 3  # at the beginning of a run, before it is called a mistake


def own_way_or(trainer: Any, objective: Objective | str | None) -> Objective | str | None:
    """The objective; None where it is automatic and the trainer has a loss of its own already.

    Raises:
        ValueError: an objective beside `compute_loss_func` or `label_smoothing_factor`, which would
            silently be ignored.
    """
    given = [
        name
        for name, value in (
            ("compute_loss_func", trainer.compute_loss_func),
            ("args.label_smoothing_factor", trainer.label_smoother),
        )
        if value is not None
    ]
    if objective is None or not given:
        return objective
    if objective != "auto":
        raise ValueError(
            f"{given[0]} would silently be ignored beside an objective: leave one of the two out "
            "(objectives have label_smoothing= of their own)"
        )
    return None


def built_objective(name: str) -> Objective:
    """An entry of `OBJECTIVES` with its defaults.

    Raises:
        UnknownNameError: no such objective.
        ValueError: one that needs to be told something.
    """
    parameters = inspect.signature(OBJECTIVES[name]).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty]
    if needed:
        raise ValueError(
            f"objective {name!r} needs {', '.join(needed)}: give the objective itself, such as "
            f"tfo.{OBJECTIVES[name].__name__}({', '.join(needed)})"
        )
    return OBJECTIVES[name]()


def bind_before_optimizer(trainer: Any, objective: Objective, module: nn.Module) -> None:
    """`objective.bind(module)`; refuses parameters that an optimizer which is there would miss."""
    before = {id(parameter) for parameter in module.parameters()}
    objective.bind(module)
    new = [name for name, p in module.named_parameters() if id(p) not in before]
    if new and trainer.optimizer is not None:
        raise ValueError(
            f"{type(objective).__name__} adds {', '.join(new)} to the model, which the optimizer "
            "that is there already would not train: give optimizer_cls_and_kwargs="
            "tfo.optimizer(...) in place of optimizers="
        )


def planning_batch(
    trainer: Any, batches: Sequence[Mapping[str, Any]], has_target: Callable[[Any], bool]
) -> Mapping[str, Any] | None:
    """A batch with targets, on every process the same; None where no process has one."""
    own = next(filter(has_target, batches), None)
    if trainer.args.world_size == 1:
        return own
    found: list[bool] = gather_object([own is not None])
    if not any(found):
        return None
    shared = [None if own is None else {k: _on_cpu(v) for k, v in own.items()}]
    return broadcast_object_list(shared, from_process=found.index(True))[0]


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, torch.Tensor) else value


def waited(num_steps: int, batch: Mapping[str, Any]) -> int:
    """One step more without any target; raises ValueError when it is the third at the beginning."""
    if num_steps + 1 >= MAX_STEPS_WITHOUT_TARGETS:
        raise ValueError(
            f"the first {num_steps + 1} steps have no target: no labels, or every label of the "
            f"batch is -100, ignored; there is nothing to train on (the batches have "
            f"{', '.join(batch)})"
        )
    return num_steps + 1


def nothing_to_learn(model: nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, Any]:
    """A loss of 0 that every process can differentiate, and the model's outputs."""
    outputs = model(**batch)
    named = outputs.items() if isinstance(outputs, Mapping) else enumerate(outputs)
    # the model's own loss of no target is NaN
    values = [value for name, value in named if name not in ("loss", 0)]
    first = next(v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point())
    return 0.0 * first.sum(), outputs


def counts_of(
    trainer: Any, objective: Objective, batches: Sequence[Mapping[str, Any]]
) -> dict[str, torch.Tensor]:
    """Each term's count over all micro-batches of all processes that see different data."""
    pieces = [objective.counts(batch) for batch in batches]
    names = sorted({name for piece in pieces for name in piece})
    totals = {
        name: torch.stack([piece[name] for piece in pieces]).sum().to(trainer.args.device)
        for name in names
    }
    if trainer.args.world_size > 1:
        gather: Any = trainer.accelerator.gather
        totals = {name: gather(count).sum() for name, count in totals.items()}
    replicas = trainer.get_tp_size() * trainer.get_cp_size() * trainer.get_sp_size()
    return {name: count / replicas for name, count in totals.items()}


def without_repeats(
    trainer: Any, batch: dict[str, Any], targets: Sequence[str] = ("labels",)
) -> dict[str, Any]:
    """Unlabel the examples that fill up the last batch of several processes a second time."""
    state = trainer.accelerator.gradient_state
    if trainer.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return batch
    size = trainer.args.eval_batch_size
    num_own = min(max(state.remainder - trainer.args.process_index * size, 0), size)
    return unlabelled(batch, targets, num_own, size)


def fitted_objective(
    trainer: Any, objective: Objective | None, module: nn.Module, batch: Mapping[str, Any]
) -> Objective | None:
    """The objective, prepared with a first batch; None given: one that fits by itself, or none.

    Raises:
        ValueError: as `prepare`; an objective that cannot be trained the way the run was started.
    """
    if trainer.args.n_gpu > 1:
        reason = (
            f"{trainer.args.n_gpu} GPUs in one process (DataParallel) cannot share an objective; "
            "start one process for each with torchrun"
        )
        if objective is not None:
            raise ValueError(reason)
        logger.warning("Training on the model's own loss, scaled by the host: %s", reason)
        return None
    if objective is None:
        return automatic(module, batch)
    if objective.num_passes > 1 and trainer.is_deepspeed_enabled:
        raise ValueError(
            f"{type(objective).__name__} takes {objective.num_passes} backward passes for a batch, "
            "and DeepSpeed's engine counts each as a batch; use DDP or FSDP2"
        )
    objective.prepare(module, batch)
    return objective
