"""The queries, keys and values of a layer, seen while a model runs."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from hf_tfopt.surgery.layer_stacks import layer_stacks

# What makes them in the host's layers: three modules, or one whose output is all three in turn.
_MAKERS = (
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("Wqkv",),
    ("c_attn",),
)
# Parts of a decoder's layer that look at the encoder: T5's, BART's, and how others call theirs.
_CROSS = ("EncDecAttention", "encoder_attn", "cross")


@contextmanager
def watch_attention_vectors(model: nn.Module, part: str, layer: int) -> Generator[list[Tensor]]:
    """A list that holds, after a forward pass, queries, keys and values [B, T, F] of a layer."""
    makers = attention_makers(model, part, layer)
    seen: dict[int, Tensor] = {}
    found: list[Tensor] = []

    def keep(number: int, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if number in seen:  # DeBERTa's makers are used for relative positions too, afterwards
            return
        seen[number] = output
        if len(seen) == len(makers):
            whole = [seen[i] for i in range(len(makers))]
            found.extend(whole if len(whole) == 3 else whole[0].chunk(3, dim=-1))

    with ExitStack() as stack:
        for number, maker in enumerate(makers):
            hook = maker.register_forward_hook(partial(keep, number))
            stack.callback(hook.remove)
        yield found


def attention_makers(model: Any, part: str, layer: int) -> list[nn.Module]:
    """The modules whose outputs are queries, keys and values of a layer's self-attention.

    Args:
        model: without wrappers.
        part: of its `layer_stacks`.
        layer: counted from 0.

    Raises:
        ValueError: none that are known.
    """
    for block in layer_stacks(model)[part].layer(model, layer):
        named = block.named_modules()
        modules = {name: each for name, each in named if not any(c in name for c in _CROSS)}
        for names in _MAKERS:
            for path in modules:
                parent, _, name = path.rpartition(".")
                paths = [f"{parent}.{other}".lstrip(".") for other in names]
                if name == names[0] and all(other in modules for other in paths):
                    return [modules[other] for other in paths]
    raise ValueError(
        f"the queries, keys and values of {type(model).__name__} are not found; compare "
        "HiddenStates() or AttentionMaps() instead"
    )
