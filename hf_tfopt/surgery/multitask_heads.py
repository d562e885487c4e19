"""A host's head on the rows of an encoder that it shares with others."""

from typing import Any, cast

from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from hf_tfopt.surgery.multitask_config import MultitaskConfig


class EncodedRows(nn.Module):
    """Stands where a head has its encoder: gives what the shared one made of the head's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: Any = None

    def forward(self, *args: Any, **options: Any) -> Any:
        """What was put there; the arguments have been through the shared encoder."""
        return self.outputs


def is_for_tokens(config: MultitaskConfig, name: str) -> bool:
    """Whether a task labels tokens; the others label whole rows."""
    return config.tasks[name]["problem"] == "token_classification"


def task_model(config: MultitaskConfig, name: str) -> Any:
    """The host's model of a task, with an encoder of its own."""
    for_tokens = is_for_tokens(config, name)
    kind = AutoModelForTokenClassification if for_tokens else AutoModelForSequenceClassification
    model = kind.from_config(config.of_task(name))
    if model.base_model is model:
        raise ValueError(f"{type(model).__name__} has no base model that tasks could share")
    return model


def run_head(
    head: PreTrainedModel, encoded: Any, given: dict[str, Any], rows: Tensor, labels: Tensor | None
) -> Any:
    """The host's own forward of a head on its rows of the encoder's output."""
    is_whole = len(rows) == encoded[0].shape[0]

    def own(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(own(item) for item in value)
        return value if is_whole or not isinstance(value, Tensor) else value.index_select(0, rows)

    stand_in = cast(EncodedRows, head.base_model)
    stand_in.outputs = type(encoded)(**{name: own(value) for name, value in encoded.items()})
    names = ("input_ids", "attention_mask", "inputs_embeds")
    try:
        inputs = {name: own(given[name]) for name in names if name in given}
        return head(**inputs, labels=labels)
    finally:
        stand_in.outputs = None
