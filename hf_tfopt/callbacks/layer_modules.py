"""The layers of a model as modules, and which positions of its batches are padding."""

from collections import Counter
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from torch import Tensor, nn

from hf_tfopt.places import named_places


def layer_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of the layers, by the labels of `named_places`: "encoder.0", "decoder.3".

    A layer is the smallest module that holds all parameters with its label; one that several labels
    share is none (XLM keeps the parts of its layers in several lists).
    """
    names: dict[str, list[list[str]]] = {}
    for name, place in named_places(model).items():
        if place.label.rpartition(".")[2].isdigit():
            names.setdefault(place.label, []).append(name.split(".")[:-1])
    prefixes = {label: _holder(model, paths) for label, paths in names.items()}
    shared = Counter(prefixes.values())
    return {
        label: model.get_submodule(prefix)
        for label, prefix in sorted(prefixes.items(), key=lambda pair: _order(pair[0]))
        if prefix and shared[prefix] == 1
    }


def embeddings_of(label: str) -> str | None:
    """What a layer's input is called: the embeddings, if it is the first of its tower."""
    tower, _, number = label.rpartition(".")
    return f"{tower.rpartition('.')[0]}.embeddings".lstrip(".") if number == "0" else None


def hidden_states(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The states that a layer is given."""
    found = args[0] if args else kwargs.get("hidden_states")
    return found if isinstance(found, Tensor) else None


def first_tensor(output: Any) -> Tensor | None:
    """The states that a layer gives: the first of a tuple, or all that there is."""
    while isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def counted_positions(model: Any, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Which positions [batch, length] are no padding, by the stack that sees them.

    Those of the mask; in packed batches, which have none or one for each query, those whose token
    is not the padding's. For a decoder beside an encoder without a mask of its own, the first and
    those whose token is not the padding's. A stack of whose padding the batch tells nothing is left
    out.

    Args:
        model: with a `config`, if it is one of encoder and decoder.
        inputs: of the model, by name.
    """
    config = getattr(model, "config", None)
    is_pair = bool(getattr(config, "is_encoder_decoder", False))
    mask, ids, padding = inputs.get("attention_mask"), inputs.get("input_ids"), padding_of(config)
    is_told = isinstance(mask, Tensor) and mask.dim() == 2
    if not is_told and isinstance(ids, Tensor) and padding is not None:
        mask = ids != padding
    masks = {"encoder": mask, "decoder": mask}
    if is_pair:
        masks["decoder"] = inputs.get("decoder_attention_mask")
        if masks["decoder"] is None:
            masks["decoder"] = _decoder_tokens(config, inputs)
    return {
        part: mask.bool()
        for part, mask in masks.items()
        if isinstance(mask, Tensor) and mask.dim() == 2
    }


def padding_of(config: Any) -> int | None:
    """The token of padding, if it has one to itself: GPT-2's is often that of the text's end."""
    padding = getattr(config, "pad_token_id", None)
    return None if padding == getattr(config, "eos_token_id", None) else padding


def _decoder_tokens(config: Any, inputs: Mapping[str, Any]) -> Tensor | None:
    """Where a decoder reads a token: the host lets it read the labels, one further to the right."""
    ids, labels = inputs.get("decoder_input_ids"), inputs.get("labels")
    if isinstance(ids, Tensor):
        is_token = ids != (-1 if config.pad_token_id is None else config.pad_token_id)
    elif isinstance(labels, Tensor) and labels.dim() == 2:
        is_token = (labels != -100).roll(1, dims=1)
    else:
        return None
    is_token[:, 0] = True  # the start, which T5 writes as padding
    return is_token


def counted_in(counted: Mapping[str, Tensor], label: str, shape: tuple[int, ...]) -> Tensor | None:
    """Those of a layer, if its states or queries are [batch, length] as the batch is."""
    mask = counted.get("decoder" if "decoder" in label else "encoder")
    return mask if mask is not None and tuple(mask.shape) == shape else None


def _holder(model: nn.Module, paths: list[list[str]]) -> str:
    """The smallest module with a forward pass that all of these lie in."""
    pairs = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    common = [parts[0] for parts in pairs]
    while isinstance(model.get_submodule(".".join(common)), nn.ModuleList | nn.ModuleDict):
        common.pop()
    return ".".join(common)


def _order(label: str) -> tuple[bool, str, int]:
    tower, _, number = label.rpartition(".")
    return "decoder" in tower, tower, int(number)
