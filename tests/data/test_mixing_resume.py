"""Training on a mixture: stopped anywhere, with workers, on two processes, it is the same run."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_tfopt.data.mixing import apportion, shares
from tests.data.mixing_run import ROWS, SIZE, both, make_trainer, mixture, result
from tests.processes import TwoInterpreters


@pytest.mark.invariant
@pytest.mark.parametrize("how", ["tfopt", "attach"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_is_never_stopped(how: str, num_workers: int, tmp_path: Path) -> None:
    """In the middle of an epoch, with dropout, and workers that live on."""
    workers = {
        "dataloader_num_workers": num_workers,
        "dataloader_persistent_workers": num_workers > 0,
    }
    whole, resumed = both(tmp_path, how, **workers)
    assert resumed == whole


def test_workers_hear_of_the_epochs(tmp_path: Path) -> None:
    """The same rows as without them; dropout's numbers would be others."""
    found: list[dict[str, list[float]]] = []
    for workers in (0, 2):
        options = {"dataloader_num_workers": workers, "dataloader_persistent_workers": workers > 0}
        trainer = make_trainer(tmp_path, dropout=0.0, save_strategy="no", **options)
        trainer.train()
        found.append(result(trainer))
    assert found[0] == found[1]


@pytest.mark.invariant
def test_two_processes_are_two_micro_batches(
    tmp_path: Path, two_interpreters: TwoInterpreters
) -> None:
    """Also where both went on from a checkpoint; but for the order of sums in float32."""
    out = tmp_path / "two.json"
    two_interpreters.run(Path(__file__).with_name("mixing_run.py"), out, tmp_path)
    whole, resumed = json.loads(out.read_text())
    assert resumed == whole
    one = make_trainer(tmp_path, dropout=0.0, save_strategy="no")
    one.train()
    for name, values in result(one).items():
        assert whole[name] == pytest.approx(values, rel=1e-5, abs=1e-6), name


def test_every_epoch_of_a_training_has_the_exact_shares(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    trainer: Any = make_trainer(tmp_path, save_strategy="no", remove_unused_columns=False)
    collate = trainer.data_collator.for_training

    def watch(rows: Any) -> Any:
        seen.append([row["task"] for row in rows])
        return collate(rows)

    trainer.data_collator.for_training = watch
    trainer.train()
    quotas = apportion(shares(list(SIZE.values()), 2.0), ROWS)
    batches = ROWS // 4
    for epoch in range(3):
        tasks = [task for batch in seen[epoch * batches : (epoch + 1) * batches] for task in batch]
        assert [tasks.count(name) for name in sorted(SIZE)] == quotas
    assert mixture().quotas == dict(zip(sorted(SIZE), quotas, strict=True))
