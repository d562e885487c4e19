"""A forward pass beside the training, to look at attention; nothing of the training sees it."""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils.rnn import pad_sequence

from hf_tfopt.callbacks.attention_watch import AttentionWatch, SeenAttention

# Attention that ends in a function that an `AttentionWatch` sees; others are eager in a probe.
_SEEN = {"sdpa", "eager", "unpadded", None}
# What says where the examples of a packed row end.
_ENDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


class _EnoughError(Exception):
    """The layers have run; the head need not."""


def probe(
    model: Any,
    inputs: Mapping[str, Any],
    layers: dict[str, nn.Module],
    see: Callable[[SeenAttention], None],
    is_whole: bool = False,
) -> None:
    """Run a model on a batch in evaluation mode, and tell of the attention in its layers.

    Without gradients, without the last step to the vocabulary, and without a trace: each module's
    training flag, the random state, and the attention implementation are as they were.

    Args:
        model: without the wrappers of DDP and compilation; autocast as the host has prepared it.
        inputs: of the model, by name.
        layers: by label.
        see: called with each attention, layer after layer; it keeps what it needs.
        is_whole: run the head too, for engines that must see the end of a forward pass.
    """
    watch = AttentionWatch(layers, see)
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with ExitStack() as stack:
        for handle in watch.attach():
            stack.callback(handle.remove)
        if not is_whole and not any(isinstance(m, FSDPModule) for m in model.modules()):
            stack.enter_context(_without_vocabulary(model))
        stack.enter_context(evaluating(model))
        stack.enter_context(_seen_implementation(model))
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        stack.enter_context(suppress(_EnoughError))
        stack.enter_context(watch)
        model(**{name: _moved(value, device) for name, value in inputs.items()})


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """For its length, every module is in evaluation mode; then each is as it was."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def _without_vocabulary(model: Any) -> Generator[None]:
    """For its length, a forward pass ends where the output embedding begins."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(head, nn.Module):
        yield
        return

    def stop(*_: Any) -> None:
        raise _EnoughError

    handle = head.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _seen_implementation(model: nn.Module) -> Generator[None]:
    """For its length, what computes attention in a kernel of its own (flash, flex) is eager."""
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "config")]
    configs = {id(module.config): module.config for module in modules}
    hidden = [
        (config, name)
        for config in configs.values()
        if (name := getattr(config, "_attn_implementation", None)) not in _SEEN
    ]
    try:
        for config, _ in hidden:  # the property would set it in every config below, too
            config._attn_implementation_internal = "eager"
        yield
    finally:
        for config, name in hidden:
            config._attn_implementation_internal = name


def first_examples(inputs: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The first examples of a batch, cloned; those of a packed row as padded rows of their own.

    Args:
        inputs: of the model, by name.
        number: of examples, at most.
    """
    main = next((inputs[n] for n in ("input_ids", "inputs_embeds") if n in inputs), None)
    tensors = [value for value in inputs.values() if isinstance(value, Tensor) and value.dim()]
    if main is None:
        main = tensors[0] if tensors else None
    ends = inputs.get("cu_seq_lens_q")
    if main is not None and isinstance(ends, Tensor):
        return _unpacked(inputs, main, ends[: number + 1].tolist())
    size = None if main is None else main.shape[0]
    return {name: _cut(value, size, number) for name, value in inputs.items()}


def _cut(value: Any, size: int | None, number: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    is_by_example = value.dim() > 0 and value.shape[0] == size
    return (value[:number] if is_by_example else value).detach().clone()


def _unpacked(inputs: Mapping[str, Any], main: Tensor, ends: list[int]) -> dict[str, Any]:
    """Packed examples side by side in padded rows, with a mask, for any attention."""
    lengths = [end - start for start, end in pairwise(ends)]
    found: dict[str, Any] = {}
    for name, value in inputs.items():
        is_by_token = isinstance(value, Tensor) and value.shape[:2] == main.shape[:2]
        if is_by_token and name != "attention_mask":
            rows = value.detach().flatten(0, 1)[: ends[-1]].split(lengths)
            padding = -100 if name == "labels" else 0
            found[name] = pad_sequence(list(rows), batch_first=True, padding_value=padding)
        elif not isinstance(value, Tensor) and name not in _ENDS:
            found[name] = value
    ones = [main.new_ones(length, dtype=torch.long) for length in lengths]
    return {**found, "attention_mask": pad_sequence(ones, batch_first=True)}


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
