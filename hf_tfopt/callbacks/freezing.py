"""The blocks of a model begin to be trained one after the other, from the head down."""

import logging
from typing import Any

import torch
from torch import nn
from transformers.training_args import ParallelMode

from hf_tfopt.callbacks.base import Intervention
from hf_tfopt.callbacks.trained import forget_gathered, trained_parameters
from hf_tfopt.callbacks.training import Scalars, Training
from hf_tfopt.optimizers.checks import check_positive
from hf_tfopt.places import named_places

logger = logging.getLogger(__name__)


def num_trained_blocks(step: int, every: float, max_steps: int, num_blocks: int) -> int:
    """The blocks that are trained in the step after so many: min(blocks, 1 + step // interval).

    Args:
        step: finished steps.
        every: from one block to the next: below 1 a share of the run, else steps.
        max_steps: of the run.
        num_blocks: from the head down.
    """
    interval = max(1, round(every * max_steps)) if every < 1 else every
    return min(num_blocks, 1 + int(step // interval))


class GradualUnfreezing(Intervention):
    """Train the head alone at first, then one block more at a time, the last layer first.

    The blocks are those of the monitors, by their distance from the head: the head and what else
    comes after the layers, each layer (of encoder and decoder together), the embeddings. A tensor
    that is tied counts where its first name stands: with a tied head the embeddings are last. What
    was frozen before training stays so.

    A frozen parameter has no gradient: optimizers pass it over, with weight decay and all, and its
    state begins when it does; the norm that clips is that of the others. Backpropagation ends at
    the lowest block that is trained, which saves time. Where an engine waits for every gradient
    (DDP; checkpointing with `use_reentrant=True`) they are computed all the same and come out 0:
    the same training, no time saved. With `torch.compile` each new block compiles the model anew.

    | name | what |
    |---|---|
    | `num_trained_blocks` | blocks that are trained |

    Args:
        every: from one block to the next: below 1 a share of the run, else steps; None: as many
            that all are trained in the second half.

    Raises:
        ValueError: `every` not above 0; when training begins: DeepSpeed or FSDP1.

    Paper: Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification",
    https://arxiv.org/abs/1801.06146, section 3.3 (theirs: a block for each epoch).
    """

    needs_gradients = True

    def __init__(self, every: float | None = None):
        super().__init__()
        if every is not None:
            check_positive("every", every)
        self.every = every
        self._forget()

    def _forget(self) -> None:
        self._model: Any = None
        self._blocks: list[list[nn.Parameter]] = []
        self._interval = 0.0
        self._num_trained = 0
        self._has_all_gradients = False
        self._hooks: list[Any] = []

    def begin(self, training: Training) -> None:
        """The trained parameters in blocks, from the head down."""
        self._model = training.model
        places = named_places(training.model)
        blocks: dict[int, list[nn.Parameter]] = {}
        trained = trained_parameters(training.model, training.optimizer)
        for name, parameter in trained.items():
            if parameter.requires_grad:  # an optimizer may hold what the user has frozen
                blocks.setdefault(places[name].distance, []).append(parameter)
        self._blocks = [blocks[distance] for distance in sorted(blocks)]
        self._has_all_gradients = _are_gradients_awaited(training)
        steps, num_blocks = training.state.max_steps, len(self._blocks)
        self._interval = self.every or max(1.0, 0.5 * steps / max(1, num_blocks - 1))
        reached = num_trained_blocks(steps - 1, self._interval, steps, num_blocks)
        if reached < num_blocks:
            logger.warning(
                "GradualUnfreezing(every=%s): %d of %d blocks will not be trained in %d steps",
                self.every,
                num_blocks - reached,
                num_blocks,
                steps,
            )

    def before_step(self, training: Training) -> None:
        """Freeze all but the blocks whose time has come."""
        state, blocks = training.state, self._blocks
        number = num_trained_blocks(state.global_step, self._interval, state.max_steps, len(blocks))
        if not self._has_all_gradients and number != self._num_trained:
            self._require(number)
        self._num_trained = number
        if self._has_all_gradients:
            self._unhook()
            self._hooks = [p.register_hook(torch.zeros_like) for p in self._frozen()]

    def gradients(self, training: Training) -> None:
        """Let the optimizer pass over what is frozen."""
        for parameter in self._frozen():
            parameter.grad = None

    def stepped(self, training: Training) -> None:
        """Leave no hook behind."""
        self._unhook()

    def release(self) -> None:
        """Leave the model as it was."""
        super().release()
        self._unhook()
        self._require(len(self._blocks))
        self._forget()

    def scalars(self, training: Training) -> Scalars:
        """How far down it has come."""
        return {"num_trained_blocks": self._num_trained}

    def _frozen(self) -> list[nn.Parameter]:
        return [p for block in self._blocks[self._num_trained :] for p in block]

    def _require(self, number: int) -> None:
        for block_number, block in enumerate(self._blocks):
            for parameter in block:
                parameter.requires_grad_(block_number < number)
        if self._model is not None:
            forget_gathered(self._model)

    def _unhook(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()


def _are_gradients_awaited(training: Training) -> bool:
    """Whether all parameters must have a gradient, trained or not."""
    args = training.args
    has_shards = any(hasattr(p, "device_mesh") for p in training.model.parameters())
    is_ddp = args.parallel_mode == ParallelMode.DISTRIBUTED and not has_shards
    options: Any = args.gradient_checkpointing_kwargs or {}
    return is_ddp or bool(args.gradient_checkpointing and options.get("use_reentrant"))
