"""What a model shows of its inside in one forward pass, stack by stack."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hf_tfopt.surgery.layer_stacks import layer_stacks


@dataclass
class Shown:
    """What one model shows in one forward pass.

    Args:
        model: without wrappers.
        outputs: its outputs.
        relations: by stack and layer its queries, keys and values, each [B, T, F].
    """

    model: Any
    outputs: Any = None
    relations: dict[tuple[str, int], list[Tensor]] = field(default_factory=lambda: {})

    def states(self, part: str, layer: int, is_token: Tensor) -> Tensor:
        """The hidden states [B, T, H] after a layer of a stack; after -1 the embeddings' output.

        Raises:
            ValueError: like the next two, an output of other positions than `is_token` [B, T] has.
        """
        states = self._of_stack(part, "hidden_states")[layer + 1]
        return self._checked("hidden states", states, is_token)

    def map(self, part: str, layer: int, is_token: Tensor) -> Tensor:
        """The attention map [B, h, T, T] of a layer, of a stack to itself."""
        found = self._of_stack(part, "attentions")[layer]
        return self._checked("attention maps", found, is_token, axes=(0, -2, -1))

    def vectors(self, part: str, layer: int, is_token: Tensor) -> list[Tensor]:
        """The queries, keys and values, each [B, T, F]."""
        found = self.relations[part, layer]
        return [self._checked("queries, keys and values", each, is_token) for each in found]

    def _of_stack(self, part: str, name: str) -> Any:
        return self.outputs[f"{part}_{name}" if has_two_stacks(self.model) else name]

    def _checked(
        self, what: str, found: Any, is_token: Tensor, axes: tuple[int, ...] = (0, 1)
    ) -> Tensor:
        num_rows, num_tokens = is_token.shape
        shape = tuple(found.shape) if isinstance(found, Tensor) else ()
        wanted = (num_rows, num_tokens, num_tokens)[: len(axes)]
        if len(shape) < len(axes) or tuple(shape[axis] for axis in axes) != wanted:
            raise ValueError(
                f"the {what} of {type(self.model).__name__} have shape {shape or 'of none'}, and "
                f"the batch {num_rows} examples of {num_tokens} tokens: its attention is one of "
                "blocks, or puts tokens first; compare other features"
            )
        return found


def has_two_stacks(model: Any) -> bool:
    """Whether it is an encoder-decoder."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def num_heads_of(model: Any, part: str) -> int:
    """The attention heads of a stack; `num_attention_heads` where all have as many."""
    heads = getattr(model.config, f"{part}_attention_heads", None)
    return model.config.num_attention_heads if heads is None else heads


def attentions_of(model: nn.Module, part: str) -> list[str]:
    """The attention implementation of a model, and of what in it holds a stack."""
    path = layer_stacks(model)[part].lists[0].split(".")
    holders = [model.get_submodule(".".join(path[:depth])) for depth in range(len(path))]
    configs = [getattr(holder, "config", None) for holder in holders]
    return [getattr(config, "_attn_implementation", "eager") for config in configs]
