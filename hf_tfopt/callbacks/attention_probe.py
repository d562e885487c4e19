"""A forward pass beside the training, to look at attention; nothing of the training sees it."""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
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

    Without gradients, without the last step to the vocabulary, and without a trace: weights, each
    module's training flag, the random state, and the attention implementation are as they were.

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
        if not is_whole:
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
    """For its length, every module is in evaluation mode; then each is as it was.

    But those with packed weights, which no mode changes: bitsandbytes packs them anew on a CPU when
    they first run in evaluation mode.
    """
    flags = [(module, module.training) for module in model.modules() if not _is_packed(module)]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def _is_packed(module: nn.Module) -> bool:
    return not all(p.is_floating_point() for p in module.parameters(recurse=False))


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


def first_examples(
    inputs: Mapping[str, Any], number: int, padding: int | None = None
) -> dict[str, Any]:
    """The first examples of a batch, cloned; those of a packed row as padded rows of their own.

    A row whose mask tells its examples apart (sdpa, eager) stays one.

    Args:
        inputs: of the model, by name.
        number: of examples, at most.
        padding: the token of padding, which packed rows may have behind their examples.
    """
    main = next((inputs[n] for n in ("input_ids", "inputs_embeds") if n in inputs), None)
    if main is None:
        tensors = (v for v in inputs.values() if isinstance(v, Tensor) and v.dim())
        main = next(tensors, None)
    ends = _ends(inputs)
    if main is not None and ends is not None:
        return _unpacked(inputs, main, ends, number, padding)
    size = None if main is None else main.shape[0]
    return {name: _cut(value, size, number) for name, value in inputs.items()}


def _ends(inputs: Mapping[str, Any]) -> list[int] | None:
    """Where examples end in a batch whose attention keeps them apart without a tensor of a mask."""
    if isinstance(inputs.get("cu_seq_lens_q"), Tensor):
        return inputs["cu_seq_lens_q"].tolist()
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if mask is None or _is_cut(mask) or positions is None:
        return None
    steps = positions.flatten().diff(prepend=positions.new_tensor([0]))
    return [0, *(steps[1:] != 1).nonzero().flatten().add(1).tolist(), len(steps)]


def _is_cut(value: Any) -> bool:
    """Whether it is made of tensors; flex attention's masks are not."""
    parts = value.values() if isinstance(value, Mapping) else [value]  # ModernBERT's has two kinds
    return all(isinstance(part, Tensor) for part in parts)


def _cut(value: Any, size: int | None, number: int) -> Any:
    if isinstance(value, Mapping):
        return {name: _cut(part, size, number) for name, part in value.items()}
    if not isinstance(value, Tensor):
        return value
    is_by_example = value.dim() > 0 and value.shape[0] == size
    return (value[:number] if is_by_example else value).detach().clone()


def _unpacked(
    inputs: Mapping[str, Any], main: Tensor, ends: list[int], number: int, padding: int | None
) -> dict[str, Any]:
    """Packed examples side by side in padded rows, with a mask, for any attention."""
    tokens = main.flatten(0, 1)
    places = [slice(*place) for place in pairwise(ends)]
    if padding is not None and main.dim() == 2:
        places = [place for place in places if bool((tokens[place] != padding).any())]
    places = places[:number]
    found: dict[str, Any] = {}
    for name, value in inputs.items():
        if name == "attention_mask" or name in _ENDS:
            continue
        if not isinstance(value, Tensor):
            found[name] = value
        elif value.shape[:2] == main.shape[:2]:
            found[name] = _in_rows(value.detach().flatten(0, 1), places, name)
    ones = torch.ones(len(tokens), dtype=torch.long, device=main.device)
    return {**found, "attention_mask": _in_rows(ones, places)}


def _in_rows(tokens: Tensor, places: list[slice], name: str = "") -> Tensor:
    rows = [tokens[place] for place in places]
    fill = -100 if name == "labels" else 0
    return pad_sequence(rows, batch_first=True, padding_value=fill)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {name: _moved(part, device) for name, part in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value
