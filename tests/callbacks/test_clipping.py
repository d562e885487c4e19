import copy
import gc
import logging
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_tfopt as tfo
from hf_tfopt.callbacks.blocks import by_block, by_role
from tests.callbacks.gradient_events import event, gradients_of, set_gradients
from tests.callbacks.runs import history_of, trainer_with
from tests.models import TINY, tiny
from tests.processes import TwoInterpreters
from tests.references.clipping import clipped_together


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("by", ["global", "layer", "role"])
def test_each_group_is_clipped_as_one_vector(name: str, by: Any) -> None:
    model = tiny(name)
    set_gradients(model)
    groups = {"layer": by_block, "role": by_role}.get(by)
    named = {"global": list(model.parameters())}
    if groups is not None:
        named = {group: groups(model).of(group) for group in groups(model).names}
    expected = {}
    for parameters in named.values():
        shorter = clipped_together([p.grad for p in parameters], 20.0)
        expected |= dict(zip(parameters, shorter, strict=True))
    callback = tfo.GradientClipping(by, max_norm=20.0)
    callback.begin(event(model))
    callback.gradients(event(model))
    for parameter, gradient in expected.items():
        # the factor is found in fp32
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-7)
    shares = callback.scalars(event(model))
    assert {f"clip_share/{group}" for group in named} == {*shares}
    assert sum(shares.values()) >= 1


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "llama"])
def test_attention_is_clipped_alone_in_every_architecture(name: str) -> None:
    model = tiny(name)
    set_gradients(model)
    before = gradients_of(model)
    callback = tfo.GradientClipping("role", {"attention": 0.5})
    callback.begin(event(model))
    callback.gradients(event(model))
    changed = {n for n, g in gradients_of(model).items() if not torch.equal(g, before[n])}
    assert changed == {n for n in before if "attn" in n.lower() or "attention" in n.lower()} - {
        n for n in before if "norm" in n.lower()
    }
    groups = by_role(model)
    norms = dict(zip(groups.names, groups.norms(groups.gradients()).tolist(), strict=True))
    assert norms["attention"] == pytest.approx(0.5, rel=1e-5)
    assert callback.scalars(event(model)) == {"clip_share/attention": 1.0}


def test_the_first_pattern_that_matches_counts() -> None:
    model = tiny("bert")
    set_gradients(model)
    limits = {"encoder.1": 0.25, "encoder.*": 0.5, "head": 1e6}
    callback = tfo.GradientClipping("layer", limits)
    callback.begin(event(model))
    groups = by_block(model)
    before = groups.norms(groups.gradients())
    callback.gradients(event(model))
    after = groups.norms(groups.gradients())
    found = dict(zip(groups.names, zip(after.tolist(), before.tolist(), strict=True), strict=True))
    assert found["encoder.0"][0] == pytest.approx(0.5, rel=1e-5)
    assert found["encoder.1"][0] == pytest.approx(0.25, rel=1e-5)
    assert all(found[group][0] == found[group][1] for group in ("embeddings", "head"))
    shares = callback.scalars(event(model))
    assert shares == {"clip_share/encoder.0": 1, "clip_share/encoder.1": 1, "clip_share/head": 0}


def test_what_rests_is_told_and_clipped_when_it_is_trained_later(caplog: Any) -> None:
    model = tiny("bert")
    model.bert.encoder.layer[0].requires_grad_(False)
    with caplog.at_level(logging.WARNING, "hf_tfopt.callbacks.clipping"):
        tfo.GradientClipping("layer", {"encoder.*": 0.5}).begin(event(model))
    assert [record.message.count("encoder.0: nothing") for record in caplog.records] == [1]
    callback = tfo.GradientClipping("layer", 0.5)
    callback.begin(event(model))
    model.bert.encoder.layer[0].requires_grad_(True)
    set_gradients(model)
    callback.gradients(event(model))
    groups = by_block(model)
    assert groups.norms(groups.gradients()).tolist() == pytest.approx([0.5] * 4, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "layers"}, "'layers' .did you mean 'layer'"),
        ({"max_norm": 0}, "max_norm must be a number above 0"),
        ({"max_norm": {}}, "names no group"),
        ({"max_norm": {"head": -1.0}}, r"max_norm\['head'\] must be"),
        ({"max_norm": {"head": "1e-3"}}, "the text '1e-3'"),
    ],
)
def test_bad_options_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tfo.GradientClipping(**options)


@pytest.mark.parametrize(
    ("by", "max_norm", "message"),
    [
        ("role", {"atention": 1.0}, "'atention'.*did you mean 'attention'.*feed_forward"),
        ("layer", {"encoder.2": 1.0}, "'encoder.2'.*groups: embeddings, encoder.0"),
        ("layer", {"*": 1.0, "head": 0.5}, "'head', but those before it.*put it first"),
    ],
)
def test_names_that_are_no_groups_are_refused(by: Any, max_norm: Any, message: str) -> None:
    callback = tfo.GradientClipping(by, max_norm)
    with pytest.raises(ValueError, match=message):
        callback.begin(event(tiny("bert")))


def test_what_the_host_leaves_nothing_to_do_is_refused(caplog: Any) -> None:
    model = tiny("bert")
    for callback in (tfo.GradientClipping(), tfo.ClipByValue(1.0)):
        with pytest.raises(ValueError, match=r"would never act.*max_grad_norm=0"):
            callback.begin(event(model, max_grad_norm=1.0))
        callback.begin(event(model, max_grad_norm=0.0))
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "hf_tfopt.callbacks.clipping"):
        tfo.GradientClipping("role", {"attention": 0.5, "head": 2.0}).begin(event(model, 1.0))
        tfo.AdaptiveGradientClipping().begin(event(model, 1.0))
    assert [record.message.count("set max_grad_norm=0") for record in caplog.records] == [1, 1]


def test_not_finite_gradients_reach_who_looks_for_them() -> None:
    model = tiny("bert")
    callbacks = [tfo.GradientClipping("layer", 0.1), tfo.ClipByValue(0.1)]
    for callback in callbacks:
        callback.begin(event(model))
    set_gradients(model)
    model.bert.encoder.layer[1].output.dense.weight.grad[0, 0] = math.inf
    for callback in callbacks:
        callback.gradients(event(model))
    bad = {name for name, g in gradients_of(model).items() if not g.isfinite().all()}
    assert bad == {"bert.encoder.layer.1.output.dense.weight"}
    assert all(not g.isnan().any() for g in gradients_of(model).values())


def test_a_skipped_step_is_counted_as_one_not_clipped() -> None:
    model = tiny("bert")
    callbacks = [tfo.ClipByValue(0.1), tfo.GradientClipping("global", 0.1)]
    for callback in callbacks:
        callback.begin(event(model))
    for is_skipped in (True, False, False, True):
        set_gradients(model)
        if is_skipped:
            model.zero_grad()
        for callback in callbacks:
            callback.gradients(event(model))
    assert callbacks[0].scalars(event(model)) == {"clip_share/value": 0.5}
    assert callbacks[1].scalars(event(model)) == {"clip_share/global": 0.5}
    assert callbacks[1].scalars(event(model)) == {}


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_shares_are_of_all_steps_since_the_last_log_also_after_a_stop(
    strategy: str, tmp_path: Path
) -> None:
    """Stopped between two logs: the resumed run tells of the steps before the stop, too."""
    options = {"logging_steps": 4, "save_strategy": strategy, "num_rows": 16, "max_grad_norm": 0}
    limit, seen = 1.0, []

    class Loud(tfo.GradientClipping):
        """Lengthens the gradients of the first two steps, as only a test would."""

        def gradients(self, training: Any) -> None:
            scale = 1e3 if training.state.global_step in (0, 1) else 1e-3
            for parameter in training.model.parameters():
                parameter.grad.mul_(scale)
            super().gradients(training)
            seen.append(training.state.global_step)

    whole = trainer_with(
        tmp_path / "whole", [Loud("global", limit)], save_steps=2, **copy.copy(options)
    )
    whole.train()
    again = trainer_with(tmp_path / "again", [Loud("global", limit)], save_steps=2, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert seen == [0, 1, 2, 3, 2, 3]
    for trainer in (whole, again):
        assert [entry["clip_share/global"] for entry in history_of(trainer)] == [0.5]


def test_training_moves_by_no_more_than_allowed(tmp_path: Path) -> None:
    """With the host's SGD: the update is lr times the clipped gradient, and a monitor sees it."""
    callback = tfo.GradientClipping("layer", {"head": 0.01, "encoder.*": 0.02})
    model = tiny("bert")
    before = copy.deepcopy(model)
    trainer = trainer_with(tmp_path, [callback], model=model, max_steps=1, max_grad_norm=0)
    trainer.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer.train()
    old, new = by_block(before), by_block(model)
    moves = [(a - b).detach() for a, b in zip(old.parameters, new.parameters, strict=True)]
    norms = dict(zip(new.names, new.norms(moves).tolist(), strict=True))
    # differences of weights of size 0.1 in fp32
    assert norms["head"] == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert norms["encoder.0"] == pytest.approx(0.1 * 0.02, rel=1e-3)
    assert norms["embeddings"] > 0.1 * 0.1


@pytest.mark.parametrize(
    "make",
    [
        tfo.GradientClipping,
        lambda: tfo.ClipByValue(0.1),
        tfo.AdaptiveGradientClipping,
        tfo.ZClip,
        tfo.PercentileClipping,
        tfo.GradientNoise,
    ],
)
def test_nothing_keeps_a_model_alive(make: Any) -> None:
    model, callback = tiny("bert"), make()
    set_gradients(model)
    callback.begin(event(model))
    callback.gradients(event(model))
    kept = weakref.ref(model.get_input_embeddings().weight)
    callback.release()
    del model
    gc.collect()
    assert kept() is None


@pytest.mark.invariant
def test_sharded_gradients_are_changed_as_whole_ones(two_interpreters: TwoInterpreters) -> None:
    """Every intervention, two processes, FSDP2's shards by rows and by columns."""
    program = Path(__file__).with_name("sharded_gradients.py")
    assert "equal" in two_interpreters.run(program).stdout
