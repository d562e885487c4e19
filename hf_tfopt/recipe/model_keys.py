"""The model of a recipe: an architecture to build, or a trained one to go on from."""

import dataclasses
from pathlib import Path

from hf_tfopt.recipe.typed_values import POSITIVE, SHARE, key

MODEL_SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings"),
)
# The host's ways to compute attention.
HOST_ATTENTIONS = ("sdpa", "eager", "flex_attention", "flash_attention_2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointingKeys:
    """What a training keeps in memory for its gradients."""

    gradient_checkpointing: bool = key(
        False, "compute a layer's insides again for its gradient instead of keeping them"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelKeys:
    """Which model, and the sizes of a new one."""

    model: str = key("bert", "an architecture to build, or a folder or Hub name to go on from")
    hidden_size: int | None = key(None, "width; none: the architecture's own", POSITIVE)
    num_hidden_layers: int | None = key(None, "layers; none: the architecture's own", POSITIVE)
    num_attention_heads: int | None = key(None, "heads; none: the architecture's own", POSITIVE)
    intermediate_size: int | None = key(None, "width of the feed-forward part", POSITIVE)
    max_position_embeddings: int | None = key(None, "the longest text a new model reads", POSITIVE)
    dropout: float | None = key(None, "every dropout of the model; none: the model's own", SHARE)

    @property
    def continues(self) -> bool:
        """Whether `model` is a trained model to go on from rather than an architecture to build."""
        return is_saved_model(self.model)

    def check_sizes(self, max_length: int | None = None) -> None:
        """Refuse sizes that no model can have, or that do not reach for so many tokens.

        Raises:
            ValueError: with the nearest size that would do.
        """
        width, heads = self.hidden_size, self.num_attention_heads
        if width and heads and width % heads:
            raise ValueError(
                f"hidden_size {width} is not divisible by num_attention_heads {heads}; "
                f"nearest: {max(1, round(width / heads)) * heads}"
            )
        positions = self.max_position_embeddings
        if positions and max_length and max_length > positions:
            raise ValueError(
                f"max_length {max_length} is beyond max_position_embeddings {positions}"
            )


def is_saved_model(model: str) -> bool:
    """Whether a recipe's `model` names a folder or a Hub repository, and not an architecture."""
    return "/" in model or "\\" in model or Path(model).is_dir()
