"""Where a model keeps its layers, and which settings of its config say how many there are."""

from typing import Any, NamedTuple

from torch import nn

# First the names that a config of encoder and decoder uses; `num_hidden_layers` is every config's.
_SETTINGS = {
    "encoder": ("encoder_layers", "num_encoder_layers", "num_layers", "num_hidden_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers", "num_hidden_layers"),
}


class LayerStack(NamedTuple):
    """The layers of one part of a model, first to last.

    Args:
        part: "encoder" or "decoder".
        lists: names of the module lists that hold them (XLM has several, one of each kind).
        length: the number of layers.
        setting: the name in the config that says so.
    """

    part: str
    lists: tuple[str, ...]
    length: int
    setting: str

    def layer(self, model: nn.Module, number: int) -> list[nn.Module]:
        """The modules of one layer."""
        return [model.get_submodule(f"{name}.{number}") for name in self.lists]


def layer_stacks(model: Any) -> dict[str, LayerStack]:
    """The stacks of a `PreTrainedModel` by part: one, or "encoder" and "decoder".

    A stack is every outermost `nn.ModuleList` that is as long as the config says there are layers.

    Raises:
        ValueError: no such list: layers that share their weights (ALBERT), or stages (Swin).
    """
    config = model.config
    is_pair = bool(getattr(config, "is_encoder_decoder", False))
    outermost: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        is_nested = any(name.startswith(f"{other}.") for other in outermost)
        if isinstance(module, nn.ModuleList) and not is_nested:
            outermost[name] = module
    found: dict[str, LayerStack] = {}
    for part in ("encoder", "decoder") if is_pair else ("encoder",):
        setting = _setting(config, part if is_pair else "")
        length = getattr(config, setting)
        names = [
            name
            for name, module in outermost.items()
            if len(module) == length and (not is_pair or part in name.split("."))
        ]
        if not names:
            raise ValueError(
                f"{type(model).__name__} has no list of {length} layers, of which its "
                f"config.{setting} speaks: its layers share their weights, or stand in stages"
            )
        found[part] = LayerStack(part, tuple(names), length, setting)
    return found


def _setting(config: Any, part: str) -> str:
    known = [name for name in _SETTINGS.get(part, ("num_hidden_layers",)) if hasattr(config, name)]
    if not known:
        raise ValueError(f"{type(config).__name__} does not say how many layers there are")
    return known[0]
