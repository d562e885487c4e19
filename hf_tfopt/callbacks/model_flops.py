"""The floating-point operations that training a model needs, and what a device could do at best."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from hf_tfopt.losses.reduction import IGNORE_INDEX

# Dense matrix products in 16 bits, FLOP/s, as the makers' data sheets have them. The first whose
# words are in the device's name counts.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989.5e12,
    "GH200": 989.5e12,
    "H100 NVL": 835.5e12,
    "H100 PCIe": 756.5e12,
    "H100": 989.5e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
# Configurations whose weights do not all work once on every token: experts, shared layers.
_UNEVEN = ("num_experts", "num_local_experts", "n_routed_experts", "num_hidden_groups")


def peak_flops_of(device: torch.device) -> float | None:
    """What a GPU can do at best in 16 bits, FLOP/s; None for one that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_FLOPS.items() if _has_words(name, known)), None)


def _has_words(name: str, words: str) -> bool:
    return re.search(rf"\b{re.escape(words)}\b", name) is not None  # an A4000 is no A40


def token_counts(batch: Mapping[str, Any], main_input: str) -> Tensor | None:
    """[tokens, places, squared lengths, labels] of a batch, int64; nothing is read back.

    Padding is what `attention_mask` leaves out; without one every place is a token. The lengths
    are those of the rows, or of the examples between `cu_seq_lens_q`. None for pictures and sound,
    whose places are no tokens.

    Args:
        batch: of a collator.
        main_input: the name of the model's input, integers [..., places].
    """
    given = batch.get(main_input)
    if not isinstance(given, Tensor) or given.ndim < 2 or given.is_floating_point():
        return None
    places = given.numel()
    labels = batch.get("labels")
    num_labels = labels.ne(IGNORE_INDEX).sum() if isinstance(labels, Tensor) else places
    lengths = _lengths(batch, given)
    numbers = (lengths.sum(), places, lengths.square().sum(), num_labels)
    return torch.stack([_on(given.device, number).long() for number in numbers])


def _on(device: torch.device, number: Tensor | int) -> Tensor:
    # `as_tensor` would copy an integer, and wait for it
    return (
        number.to(device) if isinstance(number, Tensor) else torch.full((), number, device=device)
    )


def _lengths(batch: Mapping[str, Any], given: Tensor) -> Tensor:
    bounds, mask = batch.get("cu_seq_lens_q"), batch.get("attention_mask")
    if isinstance(bounds, Tensor):
        return bounds.diff().long()
    if isinstance(mask, Tensor) and mask.shape == given.shape:
        return mask.ne(0).sum(dim=-1).flatten()
    num_places = max(1, given.shape[-1])
    return torch.full((given.numel() // num_places,), num_places, device=given.device)


@dataclass(frozen=True)
class ModelFlops:
    """What a forward and a backward pass need, of each thing that is counted.

    Args:
        of_token: of a token in the layers.
        of_square: of a squared length, in attention.
        of_label: of a label at the head.
    """

    of_token: float
    of_square: float
    of_label: float

    def of(self, tokens: float, squares: float, labels: float) -> float:
        """Of so many."""
        return self.of_token * tokens + self.of_square * squares + self.of_label * labels


def model_flops(model: Any) -> ModelFlops | None:
    """6 · weights of a token, 12 · layers · width of a squared length.

    A weight takes 2 operations in the forward pass, 2 for its input's gradient, and 2 for its own
    if it is trained. Tables that are looked up take none; a table that is also the head counts for
    the labelled tokens alone, which are what a loss has to read.

    Returns:
        None for a model that is not counted so: an encoder-decoder, whose tokens pass half of it
        each, experts, layers that share their weights, quantised weights, which are packed, or one
        without a `config` that tells its layers.

    Paper: Chowdhery et al. 2022, "PaLM" (https://arxiv.org/abs/2204.02311), appendix B, where all
    weights are trained and every token has a label.
    """
    config: Any = getattr(model, "config", None)
    if not isinstance(config, PretrainedConfig) or config.is_encoder_decoder:
        return None
    text = config.get_text_config()
    heads, layers, width = (
        getattr(text, name, None)
        for name in ("num_attention_heads", "num_hidden_layers", "hidden_size")
    )
    is_uneven = any(getattr(text, name, None) for name in _UNEVEN)
    is_packed = getattr(config, "quantization_config", None) is not None
    is_packed = is_packed or not all(p.is_floating_point() for p in model.parameters())
    if is_uneven or is_packed or not (isinstance(heads, int) and layers and width):
        return None
    inner = heads * (getattr(text, "head_dim", None) or width // heads)
    head = _head_weight(model)
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    body = [p for p in model.parameters() if id(p) not in looked_up and p is not head]
    return ModelFlops(
        sum(map(_of_weight, body)), 12 * layers * inner, 0 if head is None else _of_weight(head)
    )


def _head_weight(model: Any) -> Tensor | None:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return getattr(head, "weight", None)


def _of_weight(weight: Tensor) -> int:
    return (6 if weight.requires_grad else 4) * weight.numel()
