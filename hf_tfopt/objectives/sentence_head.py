"""Heads that classify a pair of sentences: which model has one, and what it classifies."""

import inspect
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import transformers
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_PRETRAINING_MAPPING_NAMES

from hf_tfopt.registry import nearest


class SentenceHead(NamedTuple):
    """What a model calls its label of a pair and its logits, and what we call the term."""

    label: str
    logits: str
    term: str


HEADS = (
    SentenceHead("next_sentence_label", "seq_relationship_logits", "next_sentence"),
    SentenceHead("sentence_order_label", "sop_logits", "sentence_order"),
)
# The host's architectures with one (5.23); a test finds them again by their signatures.
ARCHITECTURES = ("albert", "bert", "big_bird", "ernie", "fnet", "megatron-bert", "mobilebert")


def sentence_head(model: Any) -> SentenceHead | None:
    """The sentence head of a model or of its class, by what its forward takes; None without one."""
    arguments = inspect.signature(model.forward).parameters
    return next((head for head in HEADS if head.label in arguments), None)


def pretraining_class(architecture: str) -> Any:
    """The class of `transformers` with both heads, such as `BertForPreTraining` for "bert".

    Raises:
        ValueError: an architecture whose pre-training knows no pairs of sentences.
    """
    name: str | None = MODEL_FOR_PRETRAINING_MAPPING_NAMES.get(architecture)
    found = getattr(transformers, name) if name and name.endswith("ForPreTraining") else None
    if found is None or sentence_head(found) is None:
        raise ValueError(
            f"{architecture!r} has no head for pairs of sentences"
            f"{nearest(architecture, ARCHITECTURES)}; architectures with one: "
            f"{', '.join(ARCHITECTURES)}"
        )
    return found


def pair_label(batch: Mapping[str, Any]) -> str | None:
    """The name of the label of pairs in a batch, which may be either head's; None without one."""
    return next((head.label for head in HEADS if head.label in batch), None)


def pair_starts(batch: Mapping[str, Any], num_pairs: int) -> Tensor | None:
    """Where pairs begin that lie end to end in one row, without padding; None: each has a row.

    Raises:
        ValueError: rows or examples that are not the pairs.
    """
    ends = batch.get("cu_seq_lens_q")
    num_found = batch["input_ids"].shape[0] if ends is None else ends.numel() - 1
    # with pad_to_multiple_of, padding is one example more
    if num_pairs not in ((num_found,) if ends is None else (num_found, num_found - 1)):
        raise ValueError(
            f"{num_pairs} labels of pairs for {num_found} examples: each pair of sentences must be "
            "an example of its own"
        )
    return None if ends is None else ends[:num_pairs].long()


def one_pair(batch: Mapping[str, Any], number: int, label: str) -> dict[str, Any]:
    """The batch of this pair alone."""
    shape, ends = batch["input_ids"].shape, batch.get("cu_seq_lens_q")
    alone = {label: batch[label][number : number + 1]}
    columns = {k: v for k, v in batch.items() if isinstance(v, Tensor) and v.shape == shape}
    if ends is None:
        return {name: column[number : number + 1] for name, column in columns.items()} | alone
    start, end = int(ends[number]), int(ends[number + 1])
    bounds, size = ends.new_tensor([0, end - start]), end - start
    lengths = {"max_length_q": size, "max_length_k": size}
    return {
        **{name: column[:, start:end] for name, column in columns.items()},
        **{"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, **lengths},
        **alone,
    }


@contextmanager
def pooled_at(body: nn.Module, starts: Tensor | None) -> Generator[None]:
    """`body` pools the positions at `starts` of its one row, where it would pool the first only.

    Its pooler gets the hidden states [1, T, H], or the first of them, from a module before it, and
    now [n, 1, H] or [n, H]: those of each pair's first token. None: nothing is changed.
    """
    if starts is None:
        yield
        return
    pooler = body.get_submodule("pooler")
    seen: list[Tensor] = []

    def record(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
        first = outputs if isinstance(outputs, Tensor) else outputs[0]
        if isinstance(first, Tensor) and first.dim() == 3:
            seen[:] = [first]

    def gather(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows = seen[0].reshape(-1, seen[0].shape[-1]).index_select(0, starts)
        return (rows.unsqueeze(1) if inputs[0].dim() == 3 else rows, *inputs[1:])

    others = [child for child in body.children() if child is not pooler]
    hooks = [child.register_forward_hook(record) for child in others]
    hooks.append(pooler.register_forward_pre_hook(gather))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
