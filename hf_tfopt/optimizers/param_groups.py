"""Parameter groups: every trainable parameter in exactly one, with its own lr and weight decay."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn

from hf_tfopt.optimizers.checks import check_not_negative, check_positive
from hf_tfopt.places import (
    Part,
    Place,
    body_parameters,
    named_places,
    output_parameters,
)
from hf_tfopt.registry import nearest

Role = Literal["matrices", "others", "embeddings", "heads", "vectors"]

_NORM_CLASSES = (
    *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm),
    nn.modules.batchnorm._NormBase,  # pyright: ignore[reportPrivateUsage] # batch and instance norm
)
_TABLES = (nn.Embedding, nn.EmbeddingBag)
_TABLES_AND_CONVOLUTIONS = (*_TABLES, nn.modules.conv._ConvNd)  # pyright: ignore[reportPrivateUsage]
# LlamaRMSNorm, T5LayerNorm, BatchNorm2d, LayerNormFp32; not NormalizedLinear
_NORM_NAME = re.compile("Norm(?![a-z])")


class NamedParameter(NamedTuple):
    """A trainable tensor, under the first of its names, and the part it plays in the model."""

    name: str
    tensor: nn.Parameter
    role: Role
    is_transposed: bool  # stored [in, out], as GPT-2's Conv1D does, where nn.Linear has [out, in]


def named_roles(model: nn.Module) -> Iterator[NamedParameter]:
    """Name the role of every trainable parameter, tied ones once.

    The first rule that matches any of the places where a tensor is used wins:

    1. vectors: fewer than two dimensions (biases, gains), whatever a normalisation holds, known by
       its class, and what behaves as one does (one value per channel, in whatever shape);
    2. embeddings: the tables of embedding modules, an output layer tied to one among them;
    3. heads: the output embedding, and outside the model's body every linear layer that does not
       lead from a hidden state to another of the same width (classifiers);
    4. matrices: the weights of all other linear layers, which map hidden states to hidden states;
    5. others: convolutions, experts stacked in one tensor.

    Args:
        model: any module; one with `base_model` or `get_output_embeddings()`, as those of
            transformers, has its heads told from its body.
    """
    inside, outputs = set(body_parameters(model)), set(output_parameters(model))
    owners = _owners(model)
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            is_head = tensor in outputs or (tensor not in inside and not _is_square(tensor))
            role = _role(tensor, owners[tensor], is_head)
            is_transposed = any(_is_conv1d(owner) for owner in owners[tensor])
            yield NamedParameter(name, tensor, role, is_transposed)


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    *,
    decay_embeddings: bool = True,
    layer_decay: float = 1.0,
    multipliers: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Sort a model's trainable parameters into named groups, for any `torch.optim.Optimizer`.

    A group is what has one role (see `named_roles`), one learning rate and, with `layer_decay`, one
    layer: a dict of `name`, `role`, `params`, `param_names`, `lr`, `weight_decay`, and
    `is_transposed` for the matrices stored [in, out]. Hidden matrices at the full rate come first.
    Vectors are never decayed. A parameter's learning rate is

        lr · layer_decay^distance · multiplier

    with the distance from the head (see `named_places`) and the multiplier of the first pattern
    that matches it, 1 without one.

    Args:
        model: the model to train; frozen parameters are left out.
        lr: learning rate, above 0; written into every group, where any schedule keeps the ratios.
        weight_decay: decay of everything but vectors, 0 or above.
        decay_embeddings: also of embedding tables, and of an output layer tied to one.
        layer_decay: how much slower each layer learns than the one above it, in (0, 1].
        multipliers: by the name of a part ("embeddings", "encoder", "decoder", "head") or by a
            regular expression searched for in the parameters' names; in order, first match wins.

    Raises:
        ValueError: for a number outside its range, a pattern that no parameter is left for, a
            layer decay where there are no layers, a model with nothing to train, or one that FSDP1
            has flattened.

    Paper: for the layers' rates, Howard and Ruder 2018, ULMFiT, https://arxiv.org/abs/1801.06146,
        section 3.2, and Clark et al. 2020, ELECTRA, https://arxiv.org/abs/2003.10555, table 7.
    """
    check_group_options(lr, weight_decay, layer_decay=layer_decay, multipliers=multipliers)
    _refuse_flattened(model)
    kept = {"vectors"} if decay_embeddings else {"vectors", "embeddings"}
    places = named_places(model)
    distances = {name: place.distance if layer_decay != 1 else 0 for name, place in places.items()}
    # the host logs the lr of the first group, which is to be the one that most is trained with
    parameters = sorted(
        named_roles(model), key=lambda p: (get_args(Role).index(p.role), distances[p.name])
    )
    if not parameters:
        raise ValueError("the model has no trainable parameter: all have requires_grad=False")
    if layer_decay != 1 and not any(place.distance for place in places.values()):
        raise ValueError(f"layer_decay: {type(model).__name__} has no list of layers")
    multiplier = first_matches([p.name for p in parameters], places, multipliers or {})
    groups: dict[str, dict[str, Any]] = {}
    for name, tensor, role, is_transposed in parameters:
        is_transposed = is_transposed and role == "matrices"
        place = places[name]
        label = "matrices_transposed" if is_transposed else role
        label = f"{place.label}.{label}" if layer_decay != 1 else label
        label = f"{label}*{multiplier[name]:g}" if multiplier[name] != 1 else label
        group = groups.setdefault(
            label,
            {
                "name": label,
                "role": role,
                "params": list[nn.Parameter](),
                "param_names": list[str](),
                "lr": lr * layer_decay ** distances[name] * multiplier[name],
                "weight_decay": 0.0 if role in kept else weight_decay,
                "is_transposed": is_transposed,
            },
        )
        group["params"].append(tensor)
        group["param_names"].append(name)
    return list(groups.values())


def check_group_options(
    lr: float,
    weight_decay: float = 0.0,
    *,
    decay_embeddings: bool = True,
    layer_decay: float = 1.0,
    multipliers: Mapping[str, float] | None = None,
) -> None:
    """Raise ValueError for what is wrong with the options of `param_groups` for every model."""
    check_positive("lr", lr)
    check_not_negative("weight_decay", weight_decay)
    check_positive("layer_decay", layer_decay)
    if layer_decay > 1:
        raise ValueError(f"layer_decay must be above 0 and at most 1, got {layer_decay!r}")
    for pattern, value in (multipliers or {}).items():
        check_positive(f"multipliers[{pattern!r}]", value)
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"multipliers: {pattern!r} is no regular expression: {error}"
            ) from error


def first_matches(
    names: Iterable[str], places: Mapping[str, Place], multipliers: Mapping[str, float]
) -> dict[str, float]:
    """The multiplier of each name: of the first pattern that is its part or is found in it.

    Args:
        names: of the trainable parameters.
        places: of all parameters.
        multipliers: pattern -> number above 0.

    Raises:
        ValueError: a pattern that no name is left for, with the nearest part.
    """
    found: dict[str, float] = {}
    used: set[str] = set()
    for name in names:
        pattern = next((p for p in multipliers if _matches(p, name, places[name])), None)
        found[name] = 1.0 if pattern is None else multipliers[pattern]
        used |= {pattern} if pattern is not None else set()
    for pattern in multipliers:
        if pattern not in used:
            raise ValueError(
                f"multipliers: {pattern!r} matches no parameter that trains and that no earlier "
                f"pattern matches{nearest(pattern, get_args(Part))}; parts: "
                f"{', '.join(get_args(Part))}; any other pattern is searched for in the names, "
                f"such as {next(iter(found))!r}"
            )
    return found


def _matches(pattern: str, name: str, place: Place) -> bool:
    if pattern in get_args(Part):
        return place.part == pattern
    return re.search(pattern, name) is not None


def _refuse_flattened(model: nn.Module) -> None:
    # by name: the class is not imported for those who do not use it
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError(
            "FSDP1 leaves flat pieces of the parameters, by which biases cannot be told from "
            'matrices; use FSDP2 (fsdp_config={"version": 2}, the default)'
        )


def _owners(model: nn.Module) -> dict[nn.Parameter, list[nn.Module]]:
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for tensor in module.parameters(recurse=False):
            owners.setdefault(tensor, []).append(module)
    return owners


def _role(tensor: Tensor, owners: Sequence[nn.Module], is_head: bool) -> Role:
    is_linear = any(_is_linear(owner) for owner in owners)
    if tensor.ndim < 2 or any(_is_norm(owner, tensor) for owner in owners):
        return "vectors"
    if any(_is_embedding(owner) for owner in owners):
        return "embeddings"
    if not is_linear or tensor.ndim != 2:
        return "others"
    return "heads" if is_head else "matrices"


def is_normalization(module: nn.Module) -> bool:
    """Whether a module is a normalisation, by its class."""
    return isinstance(module, _NORM_CLASSES) or bool(_NORM_NAME.search(type(module).__name__))


def _is_norm(owner: nn.Module, tensor: Tensor) -> bool:
    if is_normalization(owner):
        return True
    is_map = _is_linear(owner) or isinstance(owner, _TABLES_AND_CONVOLUTIONS)
    return not is_map and tensor.numel() == max(tensor.shape)


def _is_embedding(owner: nn.Module) -> bool:
    # by name: positions that a ViTEmbeddings holds as a bare parameter
    return isinstance(owner, _TABLES) or "Embed" in type(owner).__name__


def _is_linear(owner: nn.Module) -> bool:
    return isinstance(owner, nn.Linear) or _is_conv1d(owner)


def _is_conv1d(owner: nn.Module) -> bool:
    # by name: transformers is not imported in this layer
    return type(owner).__name__ == "Conv1D"


def _is_square(tensor: Tensor) -> bool:
    return tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]
