"""The parameters of a model by block (embeddings, each layer, head) and by role (attention ...)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hf_tfopt.optimizers.kernels import sum_of_squares
from hf_tfopt.optimizers.param_groups import is_normalization
from hf_tfopt.optimizers.sharding import local, norm, whole_norms
from hf_tfopt.places import named_places

ROLES = ("embeddings", "attention", "feed_forward", "norm", "head")


@dataclass(frozen=True)
class Groups:
    """Trainable parameters in named groups.

    Args:
        names: of the groups, from the input to the output.
        parameters: of all groups.
        members: the group of each parameter, by its number.
    """

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    members: tuple[int, ...]
    _indices: dict[torch.device, Tensor] = field(
        default_factory=lambda: {}, init=False, repr=False, compare=False
    )

    def norms(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """‖·‖ of each group as one vector: [groups] in fp32, on one device; nothing is read back.

        Args:
            tensors: one for each parameter; None counts as 0.
        """
        found = [tensor for tensor in tensors if tensor is not None]
        if not found:
            return torch.zeros(len(self.names))
        squares = _squares_on_cpu(tensors, self.members, len(self.names))
        if squares is None:
            device = local(found[0]).device
            none = torch.zeros((), device=device)
            given = [none if tensor is None else tensor for tensor in tensors]
            norms = side_by_side([norm(local(tensor)) for tensor in given]).float()
            norms = whole_norms(norms.unsqueeze(0), given).squeeze(0)
            squares = torch.zeros(len(self.names), device=device)
            squares.index_add_(0, self._index(device), norms.square())
        return squares.sqrt()

    def _index(self, device: torch.device) -> Tensor:
        """The members on a device: copied there once, for which the host has to wait."""
        if device not in self._indices:
            self._indices[device] = torch.tensor(self.members).to(device)
        return self._indices[device]

    def gradients(self) -> list[Tensor | None]:
        """The gradient of each parameter."""
        return [parameter.grad for parameter in self.parameters]

    def of(self, name: str) -> list[nn.Parameter]:
        """The parameters of one group."""
        number = self.names.index(name)
        pairs = zip(self.parameters, self.members, strict=True)
        return [parameter for parameter, member in pairs if member == number]


def by_block(model: nn.Module) -> Groups:
    """Groups "embeddings", "encoder.0", "encoder.1" ..., "head", as `named_places` has them."""
    places = named_places(model)
    order = {place.label: -place.distance for place in places.values()}
    labels = sorted(order, key=lambda label: (label == "head", "decoder" in label, order[label]))
    return grouped(model, {name: place.label for name, place in places.items()}, labels)


def by_role(model: nn.Module) -> Groups:
    """Groups of `ROLES`, those that the model has."""
    return grouped(model, roles(model), ROLES)


def roles(model: nn.Module) -> dict[str, str]:
    """The role of every parameter, by its first name, for any architecture of transformers.

    Outside the layers it is "embeddings" or "head". Inside, "norm" is what belongs to a
    normalisation, "attention" what lies in a module whose class has Attention in its name (with its
    output projection, where that has one too), and "feed_forward" the rest.
    """
    places = named_places(model)
    modules: dict[str, nn.Module] = dict(model.named_modules())
    found: dict[str, str] = {}
    for name, place in places.items():
        path = name.split(".")[:-1]
        owners = [modules[".".join(path[: i + 1])] for i in range(len(path))]
        if owners and is_normalization(owners[-1]):
            found[name] = "norm"
        elif place.part in ("embeddings", "head"):
            found[name] = place.part
        elif any(map(is_attention, owners)):
            found[name] = "attention"
        else:
            found[name] = "feed_forward"
    return found


def grouped(model: nn.Module, group_of: Mapping[str, str], order: Iterable[str]) -> Groups:
    """The trainable parameters of a model in the groups that they are said to be of."""
    trained = [(name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad]
    present = {group_of[name] for name, _ in trained}
    names = tuple(name for name in order if name in present)
    number_of = {name: number for number, name in enumerate(names)}
    return Groups(
        names,
        tuple(tensor for _, tensor in trained),
        tuple(number_of[group_of[name]] for name, _ in trained),
    )


def side_by_side(numbers: Sequence[Tensor]) -> Tensor:
    """`torch.stack`, on the first one's device: a model may lie on several."""
    device = numbers[0].device
    return torch.stack([number.to(device) for number in numbers])


def _squares_on_cpu(
    tensors: Sequence[Tensor | None], members: Sequence[int], num_groups: int
) -> Tensor | None:
    """The sum of the squares of each group [groups]; None, where they are not all plain."""
    sums: list[float] = []
    for group in range(num_groups):
        pairs = zip(tensors, members, strict=True)
        own = [t for t, member in pairs if member == group and t is not None]
        total = sum_of_squares(own) if own else 0.0
        if total is None:
            return None
        sums.append(total)
    return torch.tensor(sums, dtype=torch.float32)


def is_attention(module: nn.Module) -> bool:
    """Whether a module is attention, with its projections: by the name of its class."""
    return "Attention" in type(module).__name__
