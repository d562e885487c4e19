"""Parts of a model that are not trained."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from hf_tfopt.places import named_places
from hf_tfopt.registry import UnknownNameError, nearest


def freeze(model: Any, parts: Sequence[str] | str) -> dict[str, list[str]]:
    r"""Set `requires_grad = False` for parts of a model; returns what each of them froze.

    Before the Trainer or an optimizer is made: their parameter groups hold what is trained then.
    `model.requires_grad_(True)` undoes it.

    Args:
        model: any module; one with `base_model` has its head told from its body.
        parts: labels of blocks as the monitors have them ("embeddings", "encoder.0", "head"), or of
            all layers of a stack ("encoder"); or regular expressions, searched in the names of
            parameters (r"LayerNorm", r"\.bias$"). A tensor that is tied is frozen by its first
            name, and all its uses with it.

    Returns:
        The names of the parameters of each part.

    Raises:
        ValueError: a part that is no label and matches no name; all would be frozen.

    Paper: none.
    """
    if isinstance(parts, str):
        parts = [parts]
    labels = {name: place.label for name, place in named_places(model).items()}
    frozen = {part: _members(part, labels) for part in parts}
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
    chosen = {name for names in frozen.values() for name in names}
    if not any(p.requires_grad for name, p in parameters.items() if name not in chosen):
        raise ValueError(f"parts={list(parts)} are all that is trained: nothing would be left")
    for name in chosen:
        parameters[name].requires_grad_(False)
    return frozen


def _members(part: str, labels: dict[str, str]) -> list[str]:
    """The parameters of a part, in the model's order."""
    found = [name for name, label in labels.items() if part in (label, _stack(label))]
    found = found or [name for name in labels if _is_found(part, name)]
    if not found:
        known = list(dict.fromkeys(labels.values()))
        raise UnknownNameError(
            f"unknown part {part!r}{nearest(part, [*known, *labels])}; known are the labels "
            f"{', '.join(known)}, and regular expressions found in names such as "
            f"{_first(labels)!r}"
        )
    return found


def _stack(label: str) -> str:
    """Of the layer "encoder.3" the stack "encoder"."""
    name, _, number = label.rpartition(".")
    return name if number.isdigit() else label


def _is_found(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


def _first(names: Iterable[str]) -> str:
    return next(iter(names), "")
