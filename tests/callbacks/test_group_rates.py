from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback

import hf_tfopt as tfo
from tests.invariants.splits import Rows
from tests.models import tiny
from tests.test_trainer import arguments


class Reporter(TrainerCallback):
    """Stands for a tracker."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self.seen.append(dict(logs))


def test_rates_of_the_update_and_shares_reach_history_and_reporters(tmp_path: Path) -> None:
    model = tiny("bert")
    reporter = Reporter()
    trainer = Trainer(
        model,
        arguments(tmp_path, lr_scheduler_type="linear"),
        train_dataset=Rows(12),
        callbacks=[reporter],
        optimizer_cls_and_kwargs=tfo.optimizer("adamw", lr=0.03, layer_decay=0.5),
    )
    tfo.attach(trainer, callbacks=[tfo.GroupRates()])
    trainer.train()
    groups = {group["name"]: group for group in trainer.optimizer.param_groups}
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    for step, log in enumerate(logs):
        for name, group in groups.items():
            # the host's linear schedule over three updates
            assert log[f"lr/{name}"] == pytest.approx(group["initial_lr"] * (1 - step / 3))
        assert log[f"lr/{trainer.optimizer.param_groups[0]['name']}"] == log["learning_rate"]
    shares = {name: logs[0][f"share/{name}"] for name in groups}
    assert sum(shares.values()) == pytest.approx(1)
    sizes = {name: sum(t.numel() for t in group["params"]) for name, group in groups.items()}
    total = sum(parameter.numel() for parameter in model.parameters())
    assert shares == {name: pytest.approx(size / total) for name, size in sizes.items()}
    assert not any(key.startswith("share/") for log in logs[1:] for key in log)
    assert [log["lr/" + next(iter(groups))] for log in reporter.seen if "loss" in log] == [
        log["lr/" + next(iter(groups))] for log in logs
    ]
