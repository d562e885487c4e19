"""What each parameter group was trained with, in the logs."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class GroupRates(TrainerCallback):
    """A monitor: `lr/<group>` in every log of training, each group's `share/<group>` in the first.

    The host logs the rate of the first group alone. The rate is that of the last update. Groups
    without a name go by their number. The reporters that come after it in the list of callbacks see
    what it adds, so put it first: `tfo.attach(trainer, callbacks=[tfo.GroupRates()])`.
    """

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}
        self._shares: dict[str, float] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Count the weights of each group."""
        sizes = {name: _size(group, model) for name, group in _named(optimizer).items()}
        total = sum(sizes.values()) or 1
        self._shares = {f"share/{name}": size / total for name, size in sizes.items()}
        self._rates = {}

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Keep the rates of the update that follows; the schedule moves them right after it."""
        groups = _named(optimizer).items()
        self._rates = {f"lr/{name}": float(group["lr"]) for name, group in groups}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add them to what is logged, for the reporters that follow and for `log_history`."""
        if logs is None or "loss" not in logs or not self._rates:
            return
        added = {**self._rates, **self._shares}
        self._shares = {}
        logs.update(added)
        state.log_history[-1].update(added)


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
