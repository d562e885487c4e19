"""Where in a model a parameter stands: before its layers, in which of them, or above them all."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeGuard

from torch import nn

_TABLES = (nn.Embedding, nn.EmbeddingBag)

Part = Literal["embeddings", "encoder", "decoder", "head"]


class Place(NamedTuple):
    """The part of the model, a label for it with the layer, and how many rates lie above it.

    `label` is "embeddings", "encoder.3", "head"; where there are several towers of a kind, as in
    CLIP, with the tower before it. `distance` is 0 for the head and what else comes after the last
    of L layers, L - i for layer i, counted from 0, and L + 1 for the embeddings and what else comes
    before the first.
    """

    part: Part
    label: str
    distance: int


class Stack(NamedTuple):
    """A tower of layers: its name, the prefixes of its layers, its part, and the tower's label."""

    name: str
    layers: tuple[str, ...]
    part: Part
    tower: str = ""

    def place(self, layer: int) -> Place:
        """Of the parameters of one layer."""
        return Place(self.part, f"{self.tower}{self.part}.{layer}", len(self.layers) - layer)


def named_places(model: nn.Module) -> dict[str, Place]:
    """The place of every parameter, by its first name, for any architecture of transformers.

    A stack is an outermost `nn.ModuleList` in the model's body whose layers hold linear maps (any,
    if none does), or one of the same length beside it, as XLM has of its norms; stages, as Swin's,
    count by their own layers. What is in the body but in no stack belongs to the stack that shares
    most of its name, the longest among several: before it if it is or is called an embedding, or is
    registered earlier, else above it. All outside the body is the head.

    Args:
        model: any module; one with `base_model` has its head told from its body.
    """
    inside, outputs = set(body_parameters(model)), set(output_parameters(model))
    stacks = _stacks(model, inside)
    order = {name: number for number, (name, _) in enumerate(model.named_parameters())}
    places: dict[str, Place] = {}
    for name, tensor in model.named_parameters():
        is_table = isinstance(model.get_submodule(_parent(name)), _TABLES)
        place = _in_a_stack(name, stacks)
        if place is None and (tensor not in inside or (tensor in outputs and not is_table)):
            place = Place("head", "head", 0)
        places[name] = place or _beside(name, is_table, stacks, order)
    return places


def body_parameters(model: Any) -> Iterator[nn.Parameter]:
    """The parameters of the model without its head; all, where the two are one module."""
    if hasattr(model, "get_base_model"):  # peft's wrapper, whose own base_model is everything
        model = model.get_base_model()
    return (model.base_model if hasattr(model, "base_model") else model).parameters()


def output_parameters(model: Any) -> Iterator[nn.Parameter]:
    """The parameters of the output embedding, if the model has one."""
    has_output = hasattr(model, "get_output_embeddings")
    output = model.get_output_embeddings() if has_output else None
    return iter(()) if output is None else output.parameters()


def _stacks(model: nn.Module, inside: set[nn.Parameter]) -> list[Stack]:
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        is_nested = any(name.startswith(f"{other}.") for other in found)
        holds_body = any(tensor in inside for tensor in module.parameters())
        if isinstance(module, nn.ModuleList) and holds_body and not is_nested:
            found[name] = module
    linear = {
        (_parent(name), len(stack))
        for name, stack in found.items()
        if any(map(_is_linear, stack.modules()))
    }
    stacks = [
        Stack(name, tuple(_layers(name, stack)), _part(name, stack, model))
        for name, stack in found.items()
        if not linear or (_parent(name), len(stack)) in linear
    ]
    towers = {(stack.part, _parent(stack.name)) for stack in stacks}  # XLM's has several lists
    num_alike = Counter(part for part, _ in towers)
    return [
        stack._replace(tower=f"{stack.name.split('.')[0]}." if num_alike[stack.part] > 1 else "")
        for stack in stacks
    ]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _layers(name: str, stack: nn.ModuleList) -> Iterator[str]:
    """The prefix of each layer; those of a stage one by one."""
    for number, layer in enumerate(stack):
        prefix = f"{name}.{number}"
        inner: dict[str, nn.ModuleList] = {}
        if isinstance(layer, nn.ModuleList):
            inner = {prefix: layer}
        elif "Stage" in type(layer).__name__:  # T5's layers hold lists too, but are layers
            children = layer.named_children()
            inner = {f"{prefix}.{n}": child for n, child in children if _is_list(child)}
        for inner_name, child in inner.items():
            yield from _layers(inner_name, child)
        if not inner:
            yield prefix


def _is_list(module: nn.Module) -> TypeGuard[nn.ModuleList]:
    return isinstance(module, nn.ModuleList)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _part(name: str, stack: nn.ModuleList, model: nn.Module) -> Part:
    if "decoder" in name or "encoder" in name:
        return "decoder" if "decoder" in name else "encoder"
    is_causal = any(getattr(module, "is_causal", False) is True for module in stack.modules())
    return "decoder" if is_causal or "ForCausalLM" in type(model).__name__ else "encoder"


def _in_a_stack(name: str, stacks: Iterable[Stack]) -> Place | None:
    for stack in stacks:
        if not name.startswith(f"{stack.name}."):
            continue
        last = 0
        for number, prefix in enumerate(stack.layers):
            if name.startswith(f"{prefix}."):
                return stack.place(number)
            if name.startswith(prefix.rsplit(".", 2)[0] + "."):  # of its stage, but of no layer
                last = number
        return stack.place(last)
    return None


def _beside(name: str, is_table: bool, stacks: list[Stack], order: Mapping[str, int]) -> Place:
    """In the body but in no stack."""
    if not stacks:
        part: Part = "embeddings" if is_table else "encoder"
        return Place(part, part, 0)
    shared = [_common_length(name, stack.name) for stack in stacks]
    near = [stack for stack, length in zip(stacks, shared, strict=True) if length == max(shared)]
    tallest = max(near, key=lambda stack: len(stack.layers))
    begin = min(number for other, number in order.items() if other.startswith(f"{tallest.name}."))
    if is_table or "embed" in name or order[name] < begin:
        return Place("embeddings", f"{tallest.tower}embeddings", len(tallest.layers) + 1)
    return Place(tallest.part, f"{tallest.tower}{tallest.part}", 0)


def _common_length(first: str, second: str) -> int:
    pairs = zip(first.split("."), second.split("."), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
