"""The attention implementation "unpadded": packed examples one by one, with no mask.

Importing this module registers it with the host; `unpadded_attention(model)` switches a model.
"""

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hf_tfopt.surgery.segment_attention import segment_attention

NAME = "unpadded"


def unpadded_attention(model: Any) -> Any:
    """Switch a model to the attention implementation "unpadded"; returns the model.

    Given the ends of the examples in the batch (`cu_seq_lens_q`, as for flash attention),
    the attention of the whole batch equals, without a mask,

        torch.cat([scaled_dot_product_attention(q, k, v) for q, k, v of each example])

    Given none it is the host's "sdpa", padding masks included. The saved configuration does not
    mention it. On CUDA, "flash_attention_2" does the same in one kernel.

    Args:
        model: a `PreTrainedModel` whose layers use the host's `AttentionInterface`.

    Raises:
        ValueError: the model has an attention of its own.

    Paper: none (the idea is flash attention's `varlen`; ModernBERT, https://arxiv.org/abs/2412.13663
    section 2.1.2, calls it unpadding).
    """
    replaceable = getattr(model, "_supports_attention_backend", False) and model._supports_sdpa
    if replaceable:
        model.set_attn_implementation(NAME)
    if not replaceable or model.config._attn_implementation != NAME:
        raise ValueError(
            f"{type(model).__name__} has an attention of its own, which cannot be replaced by "
            f"{NAME!r}: leave its implementation as it is and pad its batches, or take a model "
            "with the host's common attention (BERT, RoBERTa, DistilBERT, ModernBERT ...)"
        )
    return model


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **host_arguments: Any,
) -> tuple[Tensor, None]:
    """The function that the host calls in each layer, in the shape of `sdpa_attention_forward`.

    Args:
        module: the attention layer.
        query: `[batch, heads, length, size]`; `key` and `value` may have fewer heads.
        key: see `query`.
        value: see `query`.
        attention_mask: what the host made of the mask it was given; None: nothing is masked.
        dropout: of the attention weights.
        scaling: of the scores; None: 1 / sqrt(size).
        is_causal: None: what the module says.
        sliding_window: 1 + the distance to the furthest position seen, as in flash attention.
        cu_seq_lens_q: where examples end in the batch as one row, from 0; None: rows are examples.
        host_arguments: what else the model was given, passed on to sdpa.

    Raises:
        ValueError: `cu_seq_lens_q` does not fit the batch, as in cross-attention or with a cache.
    """
    options: dict[str, Any] = {"dropout": dropout, "scaling": scaling, **host_arguments}
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    special = any(host_arguments.get(n) is not None for n in ("position_bias", "softcap", "cache"))
    batch, _, width, _ = query.shape
    windowed = sliding_window is not None and key.shape[2] == width > sliding_window
    if cu_seq_lens_q is None and (special or attention_mask is not None or not windowed):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, is_causal=is_causal, **options
        )
    lengths = (width,) * batch if cu_seq_lens_q is None else _lengths(cu_seq_lens_q, query, key)
    if special or attention_mask is not None:
        mask = _narrowed(attention_mask, lengths, query, causal)
        return sdpa_attention_forward(module, query, key, value, mask, is_causal=False, **options)
    reach = None if sliding_window is None else _reach(module, sliding_window, causal)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return segment_attention(query, key, value, lengths, dropout, scaling, causal, reach), None


def _lengths(ends: Tensor, query: Tensor, key: Tensor) -> tuple[int, ...]:
    tokens = query.shape[0] * query.shape[2]
    bounds: list[int] = ends.tolist()
    if bounds[0] != 0 or bounds[-1] != tokens or key.shape[2] != query.shape[2]:
        raise ValueError(
            f"cu_seq_lens_q goes from {bounds[0]} to {bounds[-1]}, but this layer has {tokens} "
            f"queries in rows of {query.shape[2]} and keys in rows of {key.shape[2]}: it must "
            "divide the whole batch, and is for self-attention without a cache only"
        )
    return tuple(end - start for start, end in pairwise(bounds))


def _reach(module: torch.nn.Module, sliding_window: int, is_causal: bool) -> int:
    """The largest distance |i - j| that the host's sdpa mask allows.

    Bidirectional models count it without the position itself, and most add 1 for the attention
    function (ModernBERT); the few that do not (DiffusionGemma) pass the config's own number.
    """
    config: Any = getattr(module, "config", None)
    is_distance = not is_causal and getattr(config, "sliding_window", None) == sliding_window
    return sliding_window if is_distance else sliding_window - 1


def _narrowed(
    mask: Tensor | None, lengths: tuple[int, ...], query: Tensor, is_causal: bool
) -> Tensor:
    """A 4-D mask that allows what `mask` allows within each example; of padding, itself."""
    batch, _, width, _ = query.shape
    sizes = torch.tensor(lengths, device=query.device)
    segments = torch.arange(len(lengths), device=query.device).repeat_interleave(sizes)
    segments = segments.view(batch, 1, width)
    same = segments[..., None] == segments[..., None, :]
    if mask is None:
        return same.tril() if is_causal else same
    if mask.dtype != torch.bool:
        return mask.masked_fill(~same, torch.finfo(mask.dtype).min)
    return same & mask | torch.eye(width, dtype=torch.bool, device=query.device)


def attention_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    config: Any = None,
    **host_arguments: Any,
) -> Tensor | None:
    """The host's `sdpa_mask`, but None where a sliding window is all that it would say.

    `attention_forward` applies the window to each example by itself; a mask of the whole batch as
    one row would be far larger than all examples together.

    Args:
        q_length: queries of a row.
        kv_length: keys of a row.
        q_offset: queries before them, in a cache.
        attention_mask: 2-D, False in padding.
        local_size: the window, or the chunk of chunked attention.
        allow_is_causal_skip: the mask says no more than "causal", window and padding.
        allow_is_bidirectional_skip: it says no more than window and padding.
        config: the model's.
        host_arguments: what else the host gives, passed on.
    """
    is_window = (
        local_size is not None
        and local_size == getattr(config, "sliding_window", None)
        and getattr(config, "attention_chunk_size", None) is None
    )
    is_whole_row = q_length == kv_length and isinstance(q_offset, int) and q_offset == 0
    is_plain = allow_is_causal_skip or allow_is_bidirectional_skip
    if (is_window and is_whole_row and is_plain) and (
        attention_mask is None or bool(attention_mask.all())
    ):
        return None
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        q_offset=cast(int, q_offset),
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        config=config,
        **host_arguments,
    )


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, attention_mask)
