"""What attention takes the softmax of, seen while a model runs and whatever its implementation is.

The host's models have some fifty forms of attention, most of which keep no weights. All but flash
and flex attention end in one of two functions of torch, which a `TorchFunctionMode` sees.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hf_tfopt.callbacks.layer_modules import hidden_states
from hf_tfopt.measures import attention_logits, unseen_as_infinite

_MOST_LOGITS = 2**24  # at once: 64 MiB
# Parts of a decoder's layer that look at the encoder: T5's, BART's, and how others call theirs.
_CROSS = ("EncDecAttention", "encoder_attn", "crossattention", "cross_attn")
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


@dataclass(frozen=True)
class SeenAttention:
    """One call of attention.

    Args:
        layer: its label; with ".cross" behind it, if it looks at the encoder.
        shape: the batch and the number of queries.
        parts: its logits in fp32, [some of the batch, heads, some of the queries, keys], -inf where
            a key is unseen, with where in batch and queries they begin; so few at once that they
            fit in memory, and made when asked for.
    """

    layer: str
    shape: tuple[int, int]
    parts: Iterator[tuple[int, int, Tensor]]

    def counted(self, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The logits, each part with its own of a mask [batch, queries]."""
        for row, query, logits in self.parts:
            end = row + logits.shape[0], query + logits.shape[2]
            own = None if mask is None else mask[row : end[0], query : end[1]]
            yield logits, None if own is None else own.to(logits.device)


class AttentionWatch(TorchFunctionMode):
    """While it is entered, tells of every attention within the layers that it has hooks on.

    Args:
        layers: by label.
        see: called with each.
    """

    _SOFTMAXES: ClassVar[set[Any]] = {F.softmax, torch.softmax, Tensor.softmax}

    def __init__(self, layers: dict[str, nn.Module], see: Callable[[SeenAttention], None]):
        super().__init__()
        self._layers = layers
        self._see = see
        self._inside: list[tuple[str, tuple[int, int]]] = []

    def attach(self) -> list[Any]:
        """Put hooks on the layers, to know which of them runs; returns the handles."""
        handles: list[Any] = []
        for label, layer in self._layers.items():
            handles += self._around(label, layer)
            for name, module in layer.named_modules():
                if name.rpartition(".")[2].lower() in {word.lower() for word in _CROSS}:
                    handles += self._around(f"{label}.cross", module)
        return handles

    def _around(self, label: str, module: nn.Module) -> list[Any]:
        enter = partial(self._enter, label)
        return [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(self._leave, always_call=True),
        ]

    def _enter(self, label: str, _module: nn.Module, args: Any, kwargs: Any) -> None:
        states = hidden_states(args, kwargs)
        shape = (0, 0) if states is None or states.dim() < 3 else tuple(states.shape[:2])
        self._inside.append((label, cast(tuple[int, int], shape)))

    def _leave(self, *_: Any) -> None:
        if self._inside:
            self._inside.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The function, unchanged."""
        kwargs = kwargs or {}
        if self._inside and (func is F.scaled_dot_product_attention or func in self._SOFTMAXES):
            with torch.no_grad(), torch.autocast(args[0].device.type, enabled=False):
                self._tell(func, args, kwargs)
        return func(*args, **kwargs)

    def _tell(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        label, shape = self._inside[-1]
        if func is F.scaled_dot_product_attention:
            given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
            query: Tensor = given["query"]
            if query.dim() == 4:
                shape = query.shape[0], query.shape[2]
                self._see(SeenAttention(label, shape, _from_vectors(given)))
        elif args and args[0].dim() == 4 and (args[0].shape[0], args[0].shape[2]) == shape:
            logits = args[0].detach()  # else of no attention, or one of windows
            parts = iter([(0, 0, unseen_as_infinite(logits, logits.dtype))])
            self._see(SeenAttention(label, shape, parts))


def _from_vectors(given: dict[str, Any]) -> Iterator[tuple[int, int, Tensor]]:
    """The logits of a call of `scaled_dot_product_attention`, some at a time."""
    query, key, mask = given["query"], given["key"], given.get("attn_mask")
    batch, heads, num_queries, _ = query.shape
    num_keys = key.shape[2]
    if mask is not None:
        mask = mask.expand(batch, mask.shape[-3] if mask.dim() > 2 else 1, num_queries, num_keys)
    elif given.get("is_causal"):
        ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
        mask = ones.tril().expand(batch, 1, -1, -1)
    num_rows = max(1, _MOST_LOGITS // (heads * num_queries * num_keys))
    width = num_queries if num_rows > 1 else max(1, _MOST_LOGITS // (heads * num_keys))
    for row in range(0, batch, num_rows):
        rows = slice(row, row + num_rows)
        for first in range(0, num_queries, width):
            some = slice(first, first + width)
            own = None if mask is None else mask[rows, :, some]
            logits = attention_logits(
                query[rows, :, some], key[rows], own, scale=given.get("scale")
            )
            yield row, first, logits
