"""The memory that training a model will take, before anything is allocated."""

import copy
import inspect
import weakref
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from hf_tfopt.callbacks.tensor_bytes import MIB, gradients_of, num_bytes, state_of, weights_of
from hf_tfopt.optimizers.for_trainer import build_optimizer
from hf_tfopt.registry import nearest

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one process that holds the whole model, in MiB.

    Args:
        parameters: of parameters and buffers.
        gradients: of those of the trained parameters.
        optimizer: of the optimizer's state.
        activations: that a forward pass of one micro-batch leaves for its backward pass.
        peak: at most at once in a step, all of these with what lives for a moment.
    """

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    peak: float

    def __str__(self) -> str:
        return "\n".join(f"{name:12}{mib:10,.1f} MiB" for name, mib in asdict(self).items())


def estimate_memory(
    model: nn.Module,
    batch: Mapping[str, Any] | tuple[int, int],
    optimizer: str = "adamw",
    *,
    precision: str = "fp32",
    activation_checkpointing: bool = False,
    **options: Any,
) -> MemoryEstimate:
    """A training step of a copy of the model whose tensors have shapes but no memory.

    Nothing is computed and nothing of the model's size is allocated; the model may be on the
    "meta" device, larger than any memory. What is not seen: kernels' own scratch memory, the
    allocator's gaps, libraries, and what a device's attention kernel saves otherwise than the
    CPU's. The loss is the model's own, with all logits: `TfoptTrainer` keeps those of no token,
    and takes so much less. Sharding is not looked at.

    Args:
        model: to train, in training mode or not; it is not changed.
        batch: of one process's micro-batch: a batch of the collator, of which only shapes matter,
            or (rows, tokens) for a language model or a classifier of texts.
        optimizer: an entry of `OPTIMIZERS`.
        precision: "fp32"; "bf16", "fp16": of autocast around the model's own weights.
        activation_checkpointing: as `gradient_checkpointing` of the TrainingArguments.
        options: of `param_groups` and of the optimizer.

    Raises:
        ValueError: an unknown precision, a shape that is none, a model without a loss of its own
            for this batch, or one whose work depends on the batch's values.
        UnknownNameError: for an unknown optimizer.

    Paper: none.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision is {precision!r}{nearest(precision, list(PRECISIONS))}; it must be one of "
            f"{', '.join(PRECISIONS)}"
        )
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    shadow = _shadow(model, fake).train()
    if activation_checkpointing:
        shadow.activation_checkpointing_enable()
    stepper = build_optimizer(shadow, optimizer, 1e-3, **options)
    with fake:
        inputs = _inputs(shadow, batch)
    held = [*weights_of(shadow), *(v for v in inputs.values() if isinstance(v, Tensor))]
    live = LiveBytes(held)
    try:
        with fake, live:
            loss = _loss(shadow, inputs, precision)
            activations = live.now
            loss.backward()
            del loss
            gradients, peak = num_bytes(gradients_of(shadow)), live.peak
            live.peak = live.now
            _update(stepper)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ValueError(
            f"{type(shadow).__name__} with {optimizer!r} does work that depends on the numbers in "
            "its tensors, which an estimate does not have: give a plain padded batch, or (rows, "
            "tokens), and the host's attention"
        ) from error
    parameters, state = num_bytes(weights_of(shadow)), num_bytes(state_of(stepper))
    # the passes of all steps but the first have the state beside them
    most = num_bytes(held) + max(peak + state, live.peak)
    sizes = (parameters, gradients, state, activations, most)
    return MemoryEstimate(*(size / MIB for size in sizes))


def _loss(model: nn.Module, inputs: dict[str, Any], precision: str) -> Tensor:
    dtype = PRECISIONS[precision]
    with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
        outputs = model(**inputs)
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"{type(model).__name__} gives no loss for a batch of {', '.join(inputs)}: give a "
            "batch with its targets"
        )
    return loss


def _update(optimizer: Any) -> None:
    if hasattr(optimizer, "train"):  # schedule_free's
        optimizer.train()
    if not hasattr(optimizer, "init_state"):
        optimizer.step()
        return
    for place, group in enumerate(optimizer.param_groups):  # bitsandbytes, which reads numbers
        for number, parameter in enumerate(group["params"]):
            if parameter.grad is not None and not optimizer.state[parameter]:
                optimizer.init_state(group, parameter, place, number)


def _shadow(model: nn.Module, fake: FakeTensorMode) -> Any:
    """The model with tensors that have no memory, in place of parameters and buffers."""
    known: dict[int, Any] = {}
    with fake:
        for tensor in weights_of(model):
            shape = torch.empty_strided(
                tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu"
            )
            is_parameter = isinstance(tensor, nn.Parameter)
            known[id(tensor)] = nn.Parameter(shape, tensor.requires_grad) if is_parameter else shape
    return copy.deepcopy(model, known)


def _inputs(model: Any, batch: Mapping[str, Any] | tuple[int, int]) -> dict[str, Any]:
    if isinstance(batch, Mapping):
        return {
            name: torch.empty(value.shape, dtype=value.dtype)
            if isinstance(value, Tensor)
            else value
            for name, value in batch.items()
        }
    if len(batch) != 2 or min(batch) < 1:
        raise ValueError(f"batch is {batch}; as a shape it must be (rows, tokens), each at least 1")
    ids = torch.empty(batch, dtype=torch.long)
    accepted = inspect.signature(model.forward).parameters
    inputs = {"input_ids": ids, "attention_mask": torch.empty(batch, dtype=torch.long)}
    if "labels" not in accepted:
        raise ValueError(f"{type(model).__name__} takes no labels: give a batch with its targets")
    is_of_rows = "Sequence" in type(model).__name__ or "Sentence" in type(model).__name__
    inputs["labels"] = ids[:, 0] if is_of_rows else ids
    return {name: value for name, value in inputs.items() if name in accepted}


class LiveBytes(TorchDispatchMode):
    """For its length, follows the bytes of the storages that operations make.

    Args:
        known: tensors that are there already; views of them are nothing new.

    Attributes:
        now: of those that are alive.
        peak: of those that were alive at once, at most.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.now = 0
        self.peak = 0
        storages = (tensor.untyped_storage() for tensor in known)
        self._alive: dict[int, Any] = {id(storage): storage for storage in storages}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, result)
        return result

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, lambda _: self._free(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)
        return tensor

    def _free(self, key: int, size: int) -> None:
        self._alive.pop(key, None)
        self.now -= size
