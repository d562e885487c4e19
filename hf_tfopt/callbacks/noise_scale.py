"""The batch size from which on larger batches help less and less."""

import math
from collections.abc import Sequence, Sized
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate.state import GradientState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_tfopt.callbacks.blocks import side_by_side
from hf_tfopt.callbacks.readings import Numbers, ReadingMonitor
from hf_tfopt.callbacks.training import Scalars, Training
from hf_tfopt.optimizers.kernels import sum_of_squares
from hf_tfopt.optimizers.sharding import local, norm, whole, whole_norms


class Split(NamedTuple):
    """A batch and the part of it whose gradient is seen alone.

    Args:
        small: examples of the part.
        large: examples of the whole batch.
        is_local: each process sees a part of its own.
    """

    small: int
    large: int
    is_local: bool


class NoiseScale(ReadingMonitor):
    """The gradient noise scale, in examples: B_simple = tr Σ / ‖G‖².

    With G the true gradient and Σ the covariance of one example's. A batch much smaller than it is
    nearly all noise, and twice as many examples are worth twice as many steps; one much larger
    wastes examples. From the gradient g_b of a part of b examples and g_B of the whole batch of B,

        ‖G‖² ≈ (B·‖g_B‖² - b·‖g_b‖²) / (B - b);   tr Σ ≈ (‖g_b‖² - ‖g_B‖²) / (1/b - 1/B)

    without bias; both are averaged over the measured steps (with weights decay^age) before they are
    divided, since a mean of ratios is biased. The part is the first micro-batch; with several
    processes each has its own, of which ‖g_b‖² is the mean. Without accumulation it is what a
    process has of the batch. g_b is the part's share in the whole gradient times the number of
    micro-batches, however the loss is divided. Where examples have different numbers of labels,
    tr Σ holds the spread of these numbers too: the noise scale is larger by their variance over
    their squared mean, commonly less than one example.

    | name | what |
    |---|---|
    | `noise_scale` | tr Σ / ‖G‖², in examples; left out while ‖G‖² is estimated as 0 or below |
    | `gradient_signal` | the average of ‖G‖² |
    | `gradient_variance` | the average of tr Σ |

    Steps with fewer examples (the last of an epoch) and with gradients that are not finite are left
    out. Batches must be drawn at random: rows sorted by length are alike in a micro-batch. And the
    gradients must be the loss's own: where an objective changes them, as PCGrad, both are wrong.

    Costs one pass over the gradients in a measured step; without accumulation a hook for each
    parameter.

    Args:
        every: the number of steps from one measured step to the next; None: the steps whose loss
            the host logs.
        decay: what of an average is left after a measured step, in [0, 1).

    Raises:
        ValueError: a number outside its range. Before training: one process without gradient
            accumulation, which has no part to see; FSDP2 with replicas (HSDP), unless
            `sync_each_batch` is set; a sampler whose batches have any size; DeepSpeed or FSDP1; a
            stock Trainer that clips (it tells no callback the norm before: use `tfo.attach`).

    Paper: McCandlish, Kaplan, Amodei 2018, An Empirical Model of Large-Batch Training,
        https://arxiv.org/abs/1812.06162, equation 2.9 and appendix A.1.
    """

    needs_gradients = True

    def __init__(self, every: int | None = 10, decay: float = 0.99):
        super().__init__(every)
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, a share; it must be in [0, 1)")
        self.decay = decay
        self._split = Split(1, 2, False)
        self._heard: Tensor | float | None = None
        self._small: Tensor | None = None
        self._norms: dict[Tensor, Tensor] = {}
        self._num_parts = 0
        self._is_even = False

    def _hear(self, found: Tensor | float | None) -> None:
        self._heard = found if self._is_due else None

    def release(self) -> None:
        """Nothing is measured, and nothing of the model is held."""
        super().release()
        self._heard, self._small, self._norms = None, None, {}

    def begin(self, training: Training) -> None:
        """Find the part of a batch that can be seen alone; hear of the norm before clipping."""
        super().begin(training)
        trainer = self.trainer
        if trainer is None and training.args.max_grad_norm > 0:
            raise ValueError(
                "NoiseScale needs the gradient's norm before clipping, which a stock Trainer tells "
                "no callback: use tfo.attach(trainer, callbacks=[...]), or max_grad_norm=0"
            )
        plan = getattr(trainer, "batch_plan", None)
        if plan is not None and not plan.has_whole_batches:
            raise ValueError(
                f"NoiseScale takes all micro-batches to be of one size, and those of "
                f"{type(plan).__name__} are not; leave one of the two out"
            )
        num_replicas = training.args.world_size
        if trainer is not None:
            num_replicas = trainer.accelerator.num_processes // trainer.get_tp_size()
        self._split = split_of(training, num_replicas)
        self._is_even = is_even(training, self._split)
        self.hear_norms(self._hear)
        for name in ("signal", "variance", "weight"):
            self.remembered.setdefault(name, 0.0)

    def watch(self, training: Training) -> None:
        """Without accumulation, see each gradient before those of all processes are averaged."""
        self._small, self._num_parts, self._norms = None, 1, {}
        if training.args.gradient_accumulation_steps == 1:
            for parameter in whole_parameters(training.model):
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._see))

    def _see(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._norms[parameter] = norm(parameter.grad)  # the last of several passes has all

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See the gradients of the first micro-batch."""
        if not self._is_due:
            return
        self._num_parts += 1
        if self._small is None:
            self._small = _length(local_gradients(kwargs["model"]))

    def measure_gradients(self, training: Training) -> None:
        """Compare the part with the whole."""
        small, large = self._small, self._heard
        if self._norms:
            small = torch.linalg.vector_norm(side_by_side(list(self._norms.values())))
        self._small, self._heard, self._norms = None, None, {}
        num_parts = training.args.gradient_accumulation_steps
        is_short = bool(GradientState().end_of_dataloader) and not self._is_even
        if small is None or self._num_parts != num_parts or is_short:
            return
        if large is None:
            large = _length([p.grad for p in training.model.parameters() if p.grad is not None])
        scaler = getattr(training.optimizer, "scaler", None)  # of fp16's losses
        square = (small * (num_parts / (scaler.get_scale() if scaler else 1))).double().square()
        if self._split.is_local:
            dist.all_reduce(square)
            square /= dist.get_world_size()
        large = whole(large) if isinstance(large, Tensor) else large
        self.take(training, (), {"small": square, "large": large})

    def read(self, training: Training, step: int, names: Sequence[str], numbers: Numbers) -> None:
        """Average what one step tells."""
        small, large = numbers["small"][0], numbers["large"][0] ** 2
        if not (math.isfinite(small) and math.isfinite(large)):
            return
        kept = self.remembered
        signal, variance = signal_and_variance(small, large, self._split)
        for name, value in (("signal", signal), ("variance", variance), ("weight", 1.0)):
            kept[name] = self.decay * kept[name] + value
        kept["is_new"] = True

    def report(self, training: Training) -> Scalars:
        """The averages, if a step was measured."""
        kept = self.remembered
        if not kept.pop("is_new", False):
            return {}
        signal, variance = kept["signal"] / kept["weight"], kept["variance"] / kept["weight"]
        found = {"gradient_signal": signal, "gradient_variance": variance}
        return {**found, "noise_scale": variance / signal} if signal > 0 else found


def signal_and_variance(small: float, large: float, split: Split) -> tuple[float, float]:
    """‖G‖² and tr Σ without bias, from ‖g_b‖² (`small`) and ‖g_B‖² (`large`)."""
    b, B = split.small, split.large
    return (B * large - b * small) / (B - b), (small - large) / (1 / b - 1 / B)


def split_of(training: Training, num_processes: int) -> Split:
    """How a step's batch is cut.

    Raises:
        ValueError: it is not, or the gradients of the parts are not to be seen.
    """
    num_parts = training.args.gradient_accumulation_steps
    is_synced = bool(GradientState().plugin_kwargs.get("sync_each_batch", False))
    held = [one.sharded_param for one in _held_by_fsdp(training.model)]
    is_hybrid = any(parameter.device_mesh.ndim > 1 for parameter in held)
    if is_hybrid and not is_synced:
        raise ValueError(
            "NoiseScale must see a micro-batch's gradients, which FSDP2 with replicas keeps to "
            "itself; use DDP or FSDP2 without replicas, or accelerator_config="
            "{'gradient_accumulation_kwargs': {'sync_each_batch': True}}"
        )
    if num_parts * num_processes == 1:
        raise ValueError(
            "NoiseScale compares a part of a batch with the whole, but gradient_accumulation_steps "
            "is 1, with one process; use 2 or more (and a smaller per_device_train_batch_size: the "
            "training is the same)"
        )
    is_local = num_processes > 1 and not (is_synced and num_parts > 1)
    # what `auto_find_batch_size` has come to is in the state alone
    size = training.state.train_batch_size or training.args.train_batch_size
    large = size * num_parts * num_processes
    return Split(size if is_local else large // num_parts, large, is_local)


def is_even(training: Training, split: Split) -> bool:
    """Whether every micro-batch has as many examples as the others, also at an epoch's end."""
    dataset = getattr(training.data, "dataset", None)
    size = split.large // training.args.gradient_accumulation_steps
    is_known = isinstance(dataset, Sized) and len(dataset) % size == 0
    return is_known or training.args.dataloader_drop_last


def _length(tensors: Sequence[Tensor]) -> Tensor:
    """‖·‖ of all as one vector."""
    squares = sum_of_squares(tensors) if tensors else 0.0
    if squares is not None:
        return torch.tensor(math.sqrt(squares))
    norms = side_by_side([norm(local(tensor)) for tensor in tensors])
    return torch.linalg.vector_norm(whole_norms(norms.unsqueeze(0), tensors))


# What FSDP2 holds beside the shards is private in torch (2.13, fsdp/_fully_shard/_fsdp_param.py).


def _held_by_fsdp(model: nn.Module) -> list[Any]:
    found: list[Any] = []
    for module in model.modules():
        state: Any = getattr(module, "_get_fsdp_state", lambda: None)()
        if state is not None:
            has_several = hasattr(state, "_fsdp_param_groups")  # not yet in torch 2.8
            groups = state._fsdp_param_groups if has_several else [state._fsdp_param_group]
            found += [held for group in groups if group for held in group.fsdp_params]
    return found


def local_gradients(model: nn.Module) -> list[Tensor]:
    """All that there are, with those that FSDP2 has not divided among the processes yet."""
    found: list[Tensor | None] = [parameter.grad for parameter in model.parameters()]
    for held in _held_by_fsdp(model):
        own = held._unsharded_param.grad if hasattr(held, "_unsharded_param") else None
        found += [held.unsharded_accumulated_grad, own]
    # between a forward and a backward pass FSDP2's own are the model's parameters too
    return list({id(gradient): gradient for gradient in found if gradient is not None}.values())


def whole_parameters(model: nn.Module) -> list[Tensor]:
    """Those that gradients are accumulated in; none, while FSDP2 has not made its own yet."""
    held = _held_by_fsdp(model)
    if not all(hasattr(one, "_unsharded_param") for one in held):
        return []
    plain = [p for p in model.parameters() if not isinstance(p, DTensor)]
    found = dict.fromkeys([*plain, *(one._unsharded_param for one in held)])
    return [parameter for parameter in found if parameter.requires_grad]
