import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_tfopt as tfo
from tests.callbacks.runs import history_of, trainer_with
from tests.invariants.splits import Rows
from tests.models import tiny
from tests.references.gradients import block_of, norms_by
from tests.test_trainer import arguments


def lamb_trainer(folder: Path, monitor: Any, **options: Any) -> Any:
    return tfo.TfoptTrainer(
        tiny("bert"),
        arguments(folder, **options),
        train_dataset=Rows(32),
        callbacks=[monitor],
        optimizer_cls_and_kwargs=tfo.optimizer("lamb", lr=1e-3, weight_decay=0.01),
    )


def by_prefix(entry: dict[str, Any], prefix: str) -> dict[str, float]:
    return {k.removeprefix(prefix): v for k, v in entry.items() if k.startswith(prefix)}


def test_norms_are_of_the_weights_after_the_update(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, [tfo.WeightMonitor()])
    trainer.train()
    model = trainer.model
    expected = norms_by(block_of(model), dict(model.named_parameters()))
    entry = history_of(trainer)[-1]
    # fp32 sums of some 1e4 squares in another order
    assert by_prefix(entry, "weight_norm/") == pytest.approx(expected, rel=1e-5)
    assert by_prefix(entry, "trust_ratio/") == {}


def test_trust_ratios_are_the_median_of_a_blocks_matrices(tmp_path: Path) -> None:
    trainer = lamb_trainer(tmp_path, tfo.WeightMonitor())
    trainer.train()
    model, found = trainer.model, {}
    blocks = block_of(model)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            ratio = trainer.optimizer.state[parameter]["trust_ratio"].item()
            found.setdefault(blocks[name], []).append(ratio)
    expected = {block: statistics.median(ratios) for block, ratios in found.items()}
    assert len(expected) == 4 and min(expected.values()) > 0
    assert by_prefix(history_of(trainer)[-1], "trust_ratio/") == expected


def test_numbers_of_a_step_that_is_saved_before_it_is_logged_survive(tmp_path: Path) -> None:
    options = {"max_steps": 3, "logging_steps": 3, "save_strategy": "steps", "save_steps": 2}
    whole = lamb_trainer(tmp_path, tfo.WeightMonitor(every=2), **options)
    whole.train()
    again = lamb_trainer(tmp_path / "again", tfo.WeightMonitor(every=2), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for prefix in ("weight_norm/", "trust_ratio/"):
        ours, theirs = (by_prefix(history_of(t)[0], prefix) for t in (again, whole))
        assert ours and ours == theirs


def test_frozen_weights_are_left_out(tmp_path: Path) -> None:
    model = tiny("bert")
    model.bert.requires_grad_(False)
    trainer = trainer_with(tmp_path, [tfo.WeightMonitor()], model=model, max_steps=1)
    trainer.train()
    assert {*by_prefix(history_of(trainer)[0], "weight_norm/")} == {"head"}


def test_weights_in_no_tensor_of_their_own_are_refused(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, [tfo.WeightMonitor()])
    next(trainer.model.parameters()).ds_numel = torch.tensor(3)
    with pytest.raises(ValueError, match="ZeRO-3, FSDP1"):
        trainer.train()
