"""What recipes of language models share: a new model's configuration, or a saved one, opened."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig

from hf_tfopt.data.model_inputs import ModelFacts
from hf_tfopt.recipe.model_keys import ModelKeys
from hf_tfopt.registry import UnknownNameError, check_name, nearest

_SPECIAL_IDS = ("pad", "bos", "eos", "cls", "sep", "mask")
# Where the host's documentation of an architecture names a trained model of it.
_TRAINED_MODEL = re.compile(r"\]\(https://huggingface\.co/(?!papers/)([\w.-]+/[\w.-]+)\)")


def opened(factory: Any, key: str, name: str, **options: Any) -> Any:
    """`factory.from_pretrained`, where a name that leads nowhere is the user's error.

    Args:
        factory: an Auto class.
        key: of the recipe, that says the name.
        name: a folder or a Hub repository.
        options: the factory's own.

    Raises:
        ValueError: nothing can be opened there.
    """
    try:
        return factory.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"{key}: {name!r} cannot be opened: {error}") from error


def saved_config(name: str, dropout: float | None) -> Any:
    """The configuration of a trained model, its dropouts perhaps set otherwise.

    Raises:
        ValueError: a name that leads nowhere.
    """
    config = opened(AutoConfig, "model", name)
    for entry, value in dropouts(config, dropout).items():
        setattr(config, entry, value)
    return config


def check_architecture(name: str, known: Iterable[str]) -> None:
    """Raise ValueError if no new model of this name can be built."""
    try:
        check_name("model", name, known)
    except UnknownNameError as error:
        raise ValueError(
            f"{error}. These are built anew; a trained model is a folder, or OWNER/NAME on the Hub"
        ) from error


def new_config(
    name: str, known: Iterable[str], sizes: Mapping[str, int], dropout: float | None
) -> Any:
    """The configuration of a new model.

    Args:
        name: of the architecture.
        known: the architectures there are.
        sizes: those that are not the architecture's own.
        dropout: every dropout of the model; None: the architecture's own.

    Raises:
        ValueError: an unknown architecture, or a size that it has not.
    """
    check_architecture(name, known)
    config = AutoConfig.for_model(name)
    for size in sizes:
        if not hasattr(config, size):
            hint = nearest(size, config.to_dict())
            raise ValueError(f"{size}: a {name} has no such size{hint}; leave it out")
    return AutoConfig.for_model(name, **sizes, **dropouts(config, dropout))


def dropouts(config: Any, dropout: float | None) -> dict[str, float]:
    """Every dropout of the configuration but those of heads that this model has not.

    Whole layers (`layerdrop`) are never left out by it.
    """
    if dropout is None:
        return {}
    return {
        name: dropout
        for name, value in config.to_dict().items()
        if "drop" in name
        and not any(part in name for part in ("layerdrop", "classif", "summary"))
        and isinstance(value, float)
    }


def new_model_lines(recipe: ModelKeys) -> list[str]:
    """What to say of a model that is built anew, for a terminal; nothing of a trained one.

    The name of an architecture (gpt2) is often taken for that of its best-known trained model.
    """
    if recipe.continues:
        return []
    found = _TRAINED_MODEL.search(CONFIG_MAPPING[recipe.model].__doc__ or "")
    named = f"{found[1]}, " if found else ""
    return [
        f"Weights    untrained: {recipe.model} is an architecture, of which this is a new model; "
        f"to go on from a trained one: --model {named}another Hub name, or a folder"
    ]


def fit_to_tokenizer(config: Any, tokenizer: Any) -> None:
    """Give a new model the tokenizer's number of words and its special tokens."""
    config.vocab_size = len(tokenizer)
    for role in _SPECIAL_IDS:
        if hasattr(config, f"{role}_token_id"):
            setattr(config, f"{role}_token_id", getattr(tokenizer, f"{role}_token_id", None))


def check_fit(tokenizer: Any, max_length: int, facts: ModelFacts) -> None:
    """Refuse a tokenizer with more ids than the model, and rows longer than it reads."""
    if len(tokenizer) > facts.num_ids:
        raise ValueError(
            f"tokenizer: it has {len(tokenizer)} words, the embedding of {facts.name} only "
            f"{facts.num_ids}; take the model's own (leave tokenizer out)"
        )
    check_lengths(max_length, facts)


def check_lengths(max_length: int, facts: ModelFacts) -> None:
    """Refuse examples that a model cannot read; raises ValueError."""
    _refuse_longer(max_length, facts.name, facts.num_positions)


def check_positions(config: Any, name: str, max_length: int) -> None:
    """Refuse rows longer than a model reads, by its configuration alone."""
    _refuse_longer(max_length, name, getattr(config, "max_position_embeddings", None))


def _refuse_longer(max_length: int, name: str, positions: int | None) -> None:
    if positions is not None and 0 < positions < max_length:
        raise ValueError(
            f"max_length: got {max_length}, but {name} reads only {positions} tokens, as "
            f"the model has {positions} positions: --max_length {positions} is the longest"
        )
