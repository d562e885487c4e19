"""Parameter groups: every trainable parameter in exactly one, with its own lr and weight decay."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn

from hf_tfopt.optimizers.checks import check_not_negative, check_positive

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
    inside, outputs = _body_parameters(model), _output_parameters(model)
    owners = _owners(model)
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            is_head = tensor in outputs or (tensor not in inside and not _is_square(tensor))
            role = _role(tensor, owners[tensor], is_head)
            is_transposed = any(_is_conv1d(owner) for owner in owners[tensor])
            yield NamedParameter(name, tensor, role, is_transposed)


def param_groups(
    model: nn.Module, lr: float, weight_decay: float = 0.0, *, decay_embeddings: bool = True
) -> list[dict[str, Any]]:
    """Sort a model's trainable parameters into named groups, for any `torch.optim.Optimizer`.

    One group per role (see `named_roles`) that the model has, hidden matrices first: a dict of
    `name`, `role`, `params`, `param_names`, `lr`, `weight_decay`, and `is_transposed` for the
    matrices stored [in, out]. Vectors are never decayed.

    Args:
        model: the model to train; frozen parameters are left out.
        lr: learning rate, above 0; written into every group, where any schedule keeps the ratios.
        weight_decay: decay of everything but vectors, 0 or above.
        decay_embeddings: also of embedding tables, and of an output layer tied to one.

    Raises:
        ValueError: for a number outside its range, or a model with nothing to train.
    """
    check_positive("lr", lr)
    check_not_negative("weight_decay", weight_decay)
    kept = {"vectors"} if decay_embeddings else {"vectors", "embeddings"}
    groups: dict[tuple[Role, bool], dict[str, Any]] = {}
    for name, tensor, role, is_transposed in sorted(named_roles(model), key=_group_order):
        is_transposed = is_transposed and role == "matrices"
        group = groups.setdefault(
            (role, is_transposed),
            {
                "name": "matrices_transposed" if is_transposed else role,
                "role": role,
                "params": list[nn.Parameter](),
                "param_names": list[str](),
                "lr": lr,
                "weight_decay": 0.0 if role in kept else weight_decay,
                "is_transposed": is_transposed,
            },
        )
        group["params"].append(tensor)
        group["param_names"].append(name)
    if not groups:
        raise ValueError("the model has no trainable parameter: all have requires_grad=False")
    return list(groups.values())


def _body_parameters(model: Any) -> set[nn.Parameter]:
    if hasattr(model, "get_base_model"):  # peft's wrapper, whose own base_model is everything
        model = model.get_base_model()
    return set((model.base_model if hasattr(model, "base_model") else model).parameters())


def _output_parameters(model: Any) -> set[nn.Parameter]:
    has_output = hasattr(model, "get_output_embeddings")
    output = model.get_output_embeddings() if has_output else None
    return set() if output is None else set(output.parameters())


def _group_order(parameter: NamedParameter) -> int:
    # the host logs the lr of the first group, which is to be the one that most is trained with
    return get_args(Role).index(parameter.role)


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


def _is_norm(owner: nn.Module, tensor: Tensor) -> bool:
    if isinstance(owner, _NORM_CLASSES) or _NORM_NAME.search(type(owner).__name__):
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
