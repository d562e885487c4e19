"""What every callback of ours must keep."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

import hf_tfopt as tfo
from hf_tfopt.callbacks.base import Callback, Monitor
from hf_tfopt.callbacks.remembered import KEY
from tests.callbacks.examples import EXAMPLES, JOINED, PLAIN, SILENT
from tests.callbacks.runs import Reporter, history_of, num_hooks, trainer_with, weights_of
from tests.invariants.splits import Rows
from tests.models import tiny
from tests.test_trainer import arguments

MONITORS = [name for name, make in EXAMPLES.items() if isinstance(make(), Monitor)]


def remembered(trainer: Any) -> dict[str, Any]:
    """As it would be read from a checkpoint."""
    return json.loads(json.dumps(trainer.state.stateful_callbacks.get(KEY, {})))


def test_every_entry_has_an_example() -> None:
    assert {*EXAMPLES} | PLAIN == {*tfo.CALLBACKS}
    for name, make in EXAMPLES.items():
        assert type(make()) is tfo.CALLBACKS[name]
        assert isinstance(make(), Callback)


@pytest.mark.invariant
@pytest.mark.parametrize("name", MONITORS)
@pytest.mark.parametrize("how", ["tfopt", "attach"])
def test_a_monitor_changes_nothing(name: str, how: str, tmp_path: Path) -> None:
    """Bit-equal weights, losses and random state."""
    found = []
    for callbacks in ([], [EXAMPLES[name]()]):
        torch.manual_seed(3)
        model = tiny("bert")
        model.config.hidden_dropout_prob = 0.1
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
        trainer = trainer_with(tmp_path, callbacks, how, model, eval_strategy="steps", eval_steps=2)
        trainer.train()
        logs = [entry.get("loss", entry.get("eval_loss")) for entry in trainer.state.log_history]
        found.append((weights_of(model), logs, torch.get_rng_state()))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert torch.equal(found[0][2], found[1][2])


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("how", ["tfopt", "attach"])
def test_numbers_reach_history_and_trackers_and_are_documented(
    name: str, how: str, tmp_path: Path
) -> None:
    plain = trainer_with(tmp_path, [], how)
    plain.train()
    callback = EXAMPLES[name]()
    trainer, reporter = trainer_with(tmp_path, [callback], how), Reporter()
    trainer.add_callback(reporter)
    trainer.train()
    known = {key for entry in plain.state.log_history for key in entry}
    added = {k for e in trainer.state.log_history if "loss" in e for k in e} - known
    seen = {key for logs in reporter.seen for key in logs}
    lists = {k for e in trainer.state.log_history for k, v in e.items() if isinstance(v, list)}
    assert added - lists <= seen and not lists & seen
    if isinstance(callback, Monitor):
        assert bool(added) == (name not in SILENT)
    text = inspect.getdoc(type(callback)) or ""
    told = re.findall(r"`([a-z_]+(?:/[^`]*)?)` \|", text)
    patterns = [re.sub(r"<[^>]*>", ".+", key) for key in told]
    for key in added:
        assert any(re.fullmatch(pattern, key) for pattern in patterns), f"{key} is not in the table"


@pytest.mark.invariant
@pytest.mark.parametrize("name", EXAMPLES)
def test_stop_and_resume_equals_never_stopped(name: str, tmp_path: Path) -> None:
    """With the host's default flags: weights, logs and memory."""
    options = {"save_strategy": "steps", "save_steps": 2}
    whole = trainer_with(tmp_path / "whole", [EXAMPLES[name]()], **options)
    whole.train()
    resumed = trainer_with(tmp_path / "again", [EXAMPLES[name]()], **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(weights_of(whole.model), weights_of(resumed.model))
    assert remembered(whole) == remembered(resumed)
    # what is told once, in a run's first log, is told again in that of the rest
    later = [entry for entry in history_of(whole) if entry["step"] > 2]
    again = [entry for entry in history_of(resumed) if entry["step"] > 2]
    for old, new in zip(later, again, strict=True):
        assert old == {key: new[key] for key in old}


@pytest.mark.parametrize("name", EXAMPLES)
def test_two_of_a_kind_and_one_less_on_resume(name: str, tmp_path: Path) -> None:
    """Nothing fails, whatever was there before; and no hook outlives the run."""
    options = {"save_strategy": "steps", "save_steps": 2}
    both = trainer_with(tmp_path, [EXAMPLES[name](), EXAMPLES[name]()], **options)
    before = num_hooks(both.model)
    both.train()
    assert num_hooks(both.model) == before
    assert len(remembered(both)) == 2
    for callbacks in ([EXAMPLES[name]()], [], [EXAMPLES[name](), tfo.GroupRates()]):
        trainer = trainer_with(tmp_path / f"{len(callbacks)}", callbacks, **options)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        if callbacks:  # without any, what others remembered stays where it is
            assert len(remembered(trainer)) == len(callbacks)
        assert trainer.state.global_step == 4


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_second_training_begins_anew(name: str, tmp_path: Path) -> None:
    """The same callback in a trainer made anew: the same weights, logs and memory."""
    callback, found = EXAMPLES[name](), []
    for folder in ("first", "second"):
        trainer = trainer_with(tmp_path / folder, [callback])
        trainer.train()
        found.append((remembered(trainer), history_of(trainer), weights_of(trainer.model)))
    assert found[0][:2] == found[1][:2]
    assert torch.equal(found[0][2], found[1][2])


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_stock_trainer_takes_it_too(name: str, tmp_path: Path) -> None:
    """Before training there is nothing to go by: evaluations pass, as the one at the start does."""
    callback = EXAMPLES[name]()
    args = arguments(
        tmp_path,
        max_steps=2,
        eval_on_start=True,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        max_grad_norm=0.0,
        gradient_accumulation_steps=2,
        weight_decay=0.01,
    )
    data = {"train_dataset": Rows(16), "eval_dataset": Rows(8, seed=1)}
    trainer = Trainer(tiny("bert"), args, callbacks=[callback], **data)
    before = num_hooks(trainer.model)
    trainer.evaluate()
    trainer.predict(Rows(8, seed=2))
    if name in JOINED:
        with pytest.raises(ValueError, match=r"tfo\.attach"):
            trainer.train()
        return
    trainer.train()
    trainer.evaluate()
    assert trainer.state.global_step == 2
    assert num_hooks(trainer.model) == before
    assert len(remembered(trainer)) == 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_engine_that_hides_gradients_is_refused(name: str, tmp_path: Path) -> None:
    callback = EXAMPLES[name]()
    if not callback.needs_gradients:
        pytest.skip("needs none")
    trainer = trainer_with(tmp_path, [])
    trainer.args.deepspeed_plugin = object()
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    with pytest.raises(ValueError, match="DeepSpeed"):
        callback.on_epoch_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)
