"""The floating-point operations that training a model needs, and what a device could do at best."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_tfopt.losses.reduction import IGNORE_INDEX

# Dense matrix products in 16 bits, FLOP/s, as the makers' data sheets have them. The first name
# that is in the device's own counts.
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
    return next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)


def token_counts(batch: Mapping[str, Any], main_input: str) -> Tensor | None:
    """[tokens, places, squared lengths, labels] of a batch, int64; nothing is read back.

    Padding is what `attention_mask` leaves out; without one every place is a token. The lengths
    are those of the rows, or of the examples between `cu_seq_lens_q`.

    Args:
        batch: of a collator.
        main_input: the name of the model's input, [rows, places, ...].
    """
    given = batch.get(main_input)
    if not isinstance(given, Tensor) or given.ndim < 2:
        return None
    places = given.shape[0] * given.shape[1]
    labels = batch.get("labels")
    num_labels = labels.ne(IGNORE_INDEX).sum() if isinstance(labels, Tensor) else places
    lengths = _lengths(batch, given)
    numbers = (lengths.sum(), places, lengths.square().sum(), num_labels)
    return torch.stack([torch.as_tensor(n, device=given.device).long() for n in numbers])


def _lengths(batch: Mapping[str, Any], given: Tensor) -> Tensor:
    bounds, mask = batch.get("cu_seq_lens_q"), batch.get("attention_mask")
    if isinstance(bounds, Tensor):
        return bounds.diff().long()
    if isinstance(mask, Tensor) and mask.shape == given.shape[:2]:
        return mask.ne(0).sum(dim=1)
    return torch.full(given.shape[:1], given.shape[1], device=given.device)


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
        each, experts, layers that share their weights, or one without a `config` that tells its
        layers.

    Paper: Chowdhery et al. 2022, "PaLM" (https://arxiv.org/abs/2204.02311), appendix B, where all
    weights are trained and every token has a label.
    """
    config: Any = getattr(model, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False):
        return None
    text = config.get_text_config()
    heads, layers, width = (
        getattr(text, name, None)
        for name in ("num_attention_heads", "num_hidden_layers", "hidden_size")
    )
    is_uneven = any(getattr(text, name, None) for name in _UNEVEN)
    if is_uneven or not (isinstance(heads, int) and layers and width):
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
