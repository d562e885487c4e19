"""What each parameter group was trained with, in the logs."""

from typing import Any

from hf_tfopt.callbacks.base import Monitor
from hf_tfopt.callbacks.training import Scalars, Training


class GroupRates(Monitor):
    """The learning rate and the weight decay of every group, as of the last update.

    The host logs the rate of the first group alone. Groups without a name go by their number.

    | name | what |
    |---|---|
    | `lr/<group>` | its learning rate |
    | `weight_decay/<group>` | its decay, of groups that ever have one |
    | `share/<group>` | its share of all weights that are trained; in the first log only |

    Paper: none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rates: dict[str, float] = {}
        self._shares: dict[str, float] = {}

    def begin(self, training: Training) -> None:
        """Count the weights of each group."""
        groups = _named(training.optimizer).items()
        sizes = {name: _size(group, training.model) for name, group in groups}
        total = sum(sizes.values()) or 1
        self._shares = {f"share/{name}": size / total for name, size in sizes.items()}
        self._rates = {}

    def gradients(self, training: Training) -> None:
        """Keep the numbers of the update that follows; the schedule moves them right after it."""
        for name, group in _named(training.optimizer).items():
            self._rates[f"lr/{name}"] = float(group["lr"])
            decay, key = float(group.get("weight_decay", 0.0)), f"weight_decay/{name}"
            if decay or key in self._rates:
                self._rates[key] = decay

    def scalars(self, training: Training) -> Scalars:
        """The numbers of the last update."""
        shares, self._shares = self._shares, {}
        return {**self._rates, **shares} if self._rates else {}


def _size(group: dict[str, Any], model: Any) -> int:
    """The weights of a group, by their names in the model: ZeRO-3's groups hold none themselves."""
    names = group.get("param_names", ())
    parameters = {} if model is None else dict(model.named_parameters())
    if not names or not all(name in parameters for name in names):
        return sum(tensor.numel() for tensor in group["params"])
    return sum(getattr(parameters[n], "ds_numel", parameters[n].numel()) for n in names)


def _named(optimizer: Any) -> dict[str, dict[str, Any]]:
    groups: list[dict[str, Any]] = getattr(optimizer, "param_groups", [])
    return {str(group.get("name", number)): group for number, group in enumerate(groups)}
