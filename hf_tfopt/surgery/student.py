"""A student made of some of its teacher's layers."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_tfopt.registry import check_name
from hf_tfopt.surgery.layer_stacks import LayerStack, layer_stacks


def student_from(teacher: Any, layers: Sequence[int] | Mapping[str, Sequence[int]]) -> Any:
    """A new model of the teacher's class with only those of its layers; the teacher is untouched.

    Layer i of the student is a copy of the teacher's layer `layers[i]`; embeddings, head and all
    else are copies too, tied as they were. The config says the new number of layers, and what it
    lists layer by layer is picked likewise, so that `from_pretrained` loads the saved student. The
    attention implementation is the teacher's.

    Args:
        teacher: any `PreTrainedModel` whose layers stand in a list.
        layers: numbers from 0, rising, as `[0, 2, 4]`; for encoder and decoder together, or apart:
            `{"encoder": range(6), "decoder": [0, 5]}` (what is left out keeps all its layers).

    Raises:
        ValueError: layers that the teacher does not have, not rising, or none; a teacher whose
            layers share weights, are wrapped by an adapter, cannot stand where they would, or
            compute something else under another number.

    Paper: Sanh et al. 2019, "DistilBERT", https://arxiv.org/abs/1910.01108, section 3 (every other
    layer of BERT; theirs also takes away the token types and the pooler, which here stay).
    """
    if not isinstance(teacher, PreTrainedModel) or hasattr(teacher, "peft_config"):
        raise ValueError(
            f"the teacher is {type(teacher).__name__}; a student is made of a plain "
            "PreTrainedModel (of one with adapters, after merge_and_unload())"
        )
    stacks = layer_stacks(teacher)
    chosen = {part: _checked(numbers, stacks[part]) for part, numbers in _parts(layers, stacks)}
    _check_numbers(teacher.config, chosen)
    student: Any = type(teacher)(_picked_config(teacher, stacks, chosen))
    _copy_weights(teacher, student, stacks, chosen)
    if getattr(teacher, "generation_config", None) is not None:
        student.generation_config = copy.deepcopy(teacher.generation_config)
    return student.to(next(teacher.parameters()).device).train(teacher.training)


def _parts(
    layers: Sequence[int] | Mapping[str, Sequence[int]], stacks: Mapping[str, LayerStack]
) -> list[tuple[str, Sequence[int]]]:
    if not isinstance(layers, Mapping):
        return [(part, layers) for part in stacks]
    for part in layers:
        check_name("stack of layers", part, stacks)
    return [(part, layers.get(part, range(stack.length))) for part, stack in stacks.items()]


def _checked(numbers: Sequence[int], stack: LayerStack) -> list[int]:
    chosen = [int(number) for number in numbers]
    is_rising = all(a < b for a, b in pairwise(chosen))
    if not chosen or not is_rising or chosen[0] < 0 or chosen[-1] >= stack.length:
        raise ValueError(
            f"layers={chosen} of the {stack.part}; allowed are rising numbers from 0 to "
            f"{stack.length - 1}, at least one"
        )
    return chosen


def _check_numbers(config: Any, chosen: Mapping[str, list[int]]) -> None:
    """Refuse new numbers for layers that divide their scores by them (GPT-2, ImageGPT)."""
    is_scaled = getattr(config, "scale_attn_by_inverse_layer_idx", False)
    for numbers in chosen.values() if is_scaled else ():
        if numbers != list(range(len(numbers))):
            raise ValueError(
                f"layers={numbers} get the numbers 0 to {len(numbers) - 1}, and with "
                "config.scale_attn_by_inverse_layer_idx=True a layer's attention is scaled by its "
                "number, so that the copies would compute something else; allowed are the first "
                f"layers, such as {list(range(len(numbers)))}"
            )


def _picked_config(
    teacher: Any, stacks: Mapping[str, LayerStack], chosen: Mapping[str, list[int]]
) -> Any:
    """A copy of the config with fewer layers, that survives being saved and loaded."""
    config = copy.deepcopy(teacher.config)
    for part, stack in stacks.items():
        numbers = chosen[part]
        for name, value in vars(teacher.config).items():
            is_by_layer = isinstance(value, list | tuple) and len(value) == stack.length
            if is_by_layer and "layer" in name and len(stacks) == 1:
                setattr(config, name, [value[number] for number in numbers])
        setattr(config, stack.setting, len(numbers))
        if part == "encoder" and getattr(teacher.config, "num_hidden_layers", 0) == stack.length:
            config.num_hidden_layers = len(numbers)
    try:
        made = type(config).from_dict(config.to_dict())
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{type(config).__name__} cannot say that there are fewer layers: {error}"
        ) from error
    _carry_attention(teacher.config, made)
    return made


def _carry_attention(old: Any, new: Any) -> None:
    """The attention implementation, part by part, which no saved config mentions."""
    new._attn_implementation = old._attn_implementation
    for name in old.sub_configs:
        parts = [getattr(config, name, None) for config in (old, new)]
        if None not in parts:
            _carry_attention(*parts)


def _copy_weights(
    teacher: nn.Module,
    student: nn.Module,
    stacks: Mapping[str, LayerStack],
    chosen: Mapping[str, list[int]],
) -> None:
    old, new = teacher.state_dict(), student.state_dict()
    renumbered = _renumbered(stacks, chosen)
    sources: dict[str, str] = {}
    for name in new:
        source = _rename(name, renumbered)
        # T5's first layer alone has the table of relative positions, whichever layer that was.
        sources[name] = source if source in old else name
    used = set(sources.values())
    left_out = tuple(_left_out(stacks, chosen))
    lost = [name for name in old if name not in used and not name.startswith(left_out)]
    unfit = [
        name
        for name, source in sources.items()
        if source not in old or old[source].shape != new[name].shape
    ]
    if lost or unfit:
        raise ValueError(
            f"{type(teacher).__name__} has layers of several shapes, and one would stand where it "
            f"cannot ({(lost or unfit)[0]}): choose layers that keep their kind, with layer 0 first"
        )
    for name, parameter in student.named_parameters():
        parameter.data = parameter.data.to(old[sources[name]].dtype)
    student.load_state_dict({name: old[source] for name, source in sources.items()})
    for name, tensor in student.state_dict().items():
        if not _is_same(tensor, old[sources[name]]):
            raise ValueError(
                f"{name} is tied in the student and not in the teacher: set the teacher's "
                "config.tie_word_embeddings to what is so"
            )


def _renumbered(
    stacks: Mapping[str, LayerStack], chosen: Mapping[str, list[int]]
) -> dict[str, list[int]]:
    """For each list of layers the numbers that were chosen."""
    return {f"{name}.": chosen[part] for part, stack in stacks.items() for name in stack.lists}


def _left_out(stacks: Mapping[str, LayerStack], chosen: Mapping[str, list[int]]) -> Iterator[str]:
    """Prefixes of the layers that the student does not have."""
    for part, stack in stacks.items():
        for number in set(range(stack.length)) - set(chosen[part]):
            yield from (f"{name}.{number}." for name in stack.lists)


def _rename(name: str, renumbered: Mapping[str, list[int]]) -> str:
    """What a weight of the student is called in the teacher."""
    for prefix, numbers in renumbered.items():
        if name.startswith(prefix):
            number, _, rest = name.removeprefix(prefix).partition(".")
            return f"{prefix}{numbers[int(number)]}.{rest}"
    return name


def _is_same(ours: Tensor, theirs: Tensor) -> bool:
    return torch.equal(ours.to(theirs.device), theirs)
