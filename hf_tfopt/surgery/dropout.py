"""The dropout rates of a model: where they stand, and how to set them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

# What drops whole layers, or paths of a block: rates of another kind.
_OF_LAYERS = ("layer", "path")
_OF_ATTENTION = ("dropout", "dropout_prob", "drop")
_MODULES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class DropoutSite(NamedTuple):
    """One rate: an attribute of a module.

    Args:
        module: an `nn.Dropout`, or what hands the number to a function.
        attribute: its name, "p" of an `nn.Dropout`.
        is_attention: whether attention weights are dropped, not hidden states.
    """

    module: nn.Module
    attribute: str
    is_attention: bool

    @property
    def rate(self) -> float:
        """The rate as it is."""
        return float(getattr(self.module, self.attribute))

    def set(self, rate: float) -> None:
        """Drop this share from now on."""
        setattr(self.module, self.attribute, rate)


def dropout_sites(model: nn.Module) -> dict[str, DropoutSite]:
    """Every rate by its name in the model, "encoder.layer.0.output.dropout.p".

    They are the `p` of each `nn.Dropout` (also of its kin in other dimensions), and each number
    whose attribute's name has "dropout" in it, as layers have that call the function (BART), and
    attention that hands its rate to a kernel (Llama, ModernBERT). What drops layers or paths is
    none. A rate that was 0 when the model was made may have no module (`nn.Identity`), and stays 0.

    Args:
        model: any module.
    """
    found: dict[str, DropoutSite] = {}
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for path, module in modules.items():
        prefix = f"{path}." if path else ""
        parent, _, name = path.rpartition(".")
        if isinstance(module, _MODULES):
            is_attention = _is_attention(name, modules[parent])
            found[f"{prefix}p"] = DropoutSite(module, "p", is_attention)
            continue
        for attribute in _numbers(module):
            is_attention = _is_attention(attribute, module)
            found[f"{prefix}{attribute}"] = DropoutSite(module, attribute, is_attention)
    return found


def set_dropout(model: Any, rate: float, attention: float | None = None) -> dict[str, float]:
    """Set the dropout rates of a model, which its config need not name alike.

    The config keeps its own rates: a model loaded from what is saved has those again.

    Args:
        model: any module.
        rate: of hidden states, in [0, 1).
        attention: of attention weights, in [0, 1); None: the same.

    Returns:
        Every rate that was set, by its name in the model.

    Raises:
        ValueError: a rate out of range; a model that drops nothing anywhere.

    Paper: Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting", https://jmlr.org/papers/v15/srivastava14a.html; here, as in torch, what is kept is
    divided by 1 - rate while training.
    """
    attention = rate if attention is None else attention
    for name, value in (("rate", rate), ("attention", attention)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")
    sites = dropout_sites(model)
    if not sites:
        raise ValueError(
            f"{type(model).__name__} has no dropout to set: no nn.Dropout, and no module with a "
            "number called dropout; make it from a config with rates above 0"
        )
    for site in sites.values():
        site.set(float(attention if site.is_attention else rate))
    return {name: site.rate for name, site in sites.items()}


def _numbers(module: nn.Module) -> Iterator[str]:
    """The attributes of a module that are dropout rates."""
    for name, value in vars(module).items():
        is_rate = isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value < 1
        if is_rate and "dropout" in name and not any(word in name for word in _OF_LAYERS):
            yield name


def _is_attention(name: str, owner: nn.Module) -> bool:
    """Whether a rate is of attention weights, by its name and by the class that it lies in.

    Attention classes call theirs "dropout" or name it after attention; with another word before it
    ("resid_dropout", "out_drop", "pos_dropout"), or around such a class (T5), it is of hidden
    states.
    """
    if name.startswith("att"):
        return True
    is_innermost = not any(_is_called_attention(child) for child in owner.children())
    return is_innermost and _is_called_attention(owner) and name in _OF_ATTENTION


def _is_called_attention(module: nn.Module) -> bool:
    return "Attention" in type(module).__name__
