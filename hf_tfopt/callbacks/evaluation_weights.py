"""Checkpoints of the weights to evaluate, where an optimizer trains with others (Schedule-Free)."""

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_tfopt.callbacks.trained import innermost

logger = logging.getLogger(__name__)


class EvaluationWeights(TrainerCallback):
    """Call `optimizer.eval()` before each checkpoint and at the end of each epoch.

    Schedule-Free trains at the points y and evaluates their average x. The host (5.23) changes to x
    in `evaluate()` alone, and back in the next training step: without this callback a checkpoint
    with no evaluation before it holds y, and so does the model after training; and a best model
    that is loaded then is taken for y, and spoilt by the next evaluation. Optimizers without
    `train()` and `eval()` are left alone.

    It must come after the callbacks that ask for a checkpoint; the host's own comes first. What
    saves by itself (the host's `enable_jit_checkpoint`, another callback) saves y, from which
    training goes on as well. A learning rate that falls is warned of, once in a run: the average
    stands for the decay.

    Raises:
        ValueError: when training begins, where an engine trains joined copies of the weights
            (DeepSpeed ZeRO): the model's own would stay y.
    """

    def __init__(self) -> None:
        self._has_warned = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Warn anew."""
        self._has_warned = False
        for group in _groups(optimizer):
            if len(group.get("param_names", group["params"])) != len(group["params"]):
                raise ValueError(
                    "Schedule-Free changes the model's weights to evaluate and to save them, but "
                    "an engine trains joined copies (DeepSpeed ZeRO): use DDP or FSDP2, or another "
                    "optimizer"
                )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Change to x where a checkpoint is due."""
        if not self._has_warned and _is_falling(optimizer):
            self._has_warned = True
            logger.warning(
                "Schedule-Free averages where others decay, but the learning rate falls: use a "
                "constant one, schedule='constant' or lr_scheduler_type='constant'; warm up with "
                "the optimizer's own warmup_steps"
            )
        if control.should_save:
            _evaluate(optimizer)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Change to x: a checkpoint may be due, and every run ends with the end of an epoch."""
        _evaluate(optimizer)


def _evaluate(optimizer: Any) -> None:
    # of its class: accelerate's wrapper always has the method, and `WeightAverage` gives one to the
    # optimizer itself, which is for evaluations alone
    if callable(getattr(type(innermost(optimizer)), "eval", None)):
        optimizer.eval()


def _is_falling(optimizer: Any) -> bool:
    """Whether a group has a lower rate than it has had."""
    return any(group["lr"] < group["lr_max"] for group in _groups(optimizer))


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    """The groups of a Schedule-Free optimizer; none of another."""
    groups: list[dict[str, Any]] = getattr(optimizer, "param_groups", [])
    return [group for group in groups if "lr_max" in group]
