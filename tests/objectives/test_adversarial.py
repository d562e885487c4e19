"""FGM, PGD and FreeLB against explicit `inputs_embeds`, and what must never happen on the way."""

import logging
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from hf_tfopt.losses.keyed_noise import uniform_noise
from hf_tfopt.losses.perturbation import padded_examples
from hf_tfopt.losses.reduction import LossSum
from hf_tfopt.objectives.adversarial import FGM, PGD, FreeLB
from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.consistency import RDrop
from hf_tfopt.objectives.gradient_balance import PCGrad
from hf_tfopt.objectives.language_modeling import LanguageModeling
from tests.models import tiny
from tests.objectives.adversarial_models import (
    SETTINGS,
    assert_same,
    classes,
    classifier,
    gradients,
    num_hooks,
    tokens,
    trained,
)
from tests.references import adversarial as twins


@pytest.mark.parametrize("name", SETTINGS)
def test_fgm_equals_the_obvious_way(name: str) -> None:
    setting = SETTINGS[name]
    model, batch = setting.model().train(), setting.batch()
    trained(FGM(setting.objective(), epsilon=0.7, weight=0.5), model, batch)
    assert_same(gradients(model), twins.fgm(model, batch, epsilon=0.7, weight=0.5))


@pytest.mark.parametrize("name", SETTINGS)
def test_pgd_equals_the_obvious_way(name: str) -> None:
    setting = SETTINGS[name]
    model, batch = setting.model().train(), setting.batch()
    options: Any = {"epsilon": 0.7, "steps": 3, "step_size": 0.4, "weight": 2.0}
    trained(PGD(setting.objective(), **options), model, batch)
    assert_same(gradients(model), twins.pgd(model, batch, **options))


@pytest.mark.parametrize("name", SETTINGS)
def test_freelb_equals_the_obvious_way(name: str) -> None:
    setting = SETTINGS[name]
    model, batch = setting.model().train(), setting.batch()
    options: Any = {"epsilon": 0.5, "steps": 3, "step_size": 0.3}
    trained(FreeLB(setting.objective(), seed=5, **options), model, batch, step=2)
    mask = batch["attention_mask"]
    width = twins.embeddings(model, batch).shape[-1]
    start = uniform_noise(batch["input_ids"], padded_examples(mask), width, seed=5, step=2)
    start = 0.5 * start / (mask.sum(1) * width).sqrt().view(-1, 1, 1)
    assert (start.norm(dim=(1, 2)) < 0.5).all()
    assert_same(gradients(model), twins.freelb(model, batch, start, **options))


def test_each_term_is_logged_under_its_own_name() -> None:
    model, batch = tiny("bert").train(), tokens()
    plain = model(**batch).loss.detach()
    fgm = trained(FGM(LanguageModeling()), model, batch)
    torch.testing.assert_close(fgm["cross_entropy"], plain, rtol=1e-6, atol=0)
    assert fgm["adversarial_cross_entropy"] > plain + 1e-3
    freelb = trained(FreeLB(LanguageModeling(), steps=2), model, batch)
    assert set(freelb) == {"adversarial_cross_entropy"}
    assert freelb["adversarial_cross_entropy"] > plain


@pytest.mark.parametrize("kind", [FGM, PGD, FreeLB])
def test_evaluation_is_plain(kind: Any) -> None:
    model, batch = tiny("gpt2").train(), tokens()
    objective = kind(LanguageModeling(label_smoothing=0.1))
    objective.prepare(model, batch)
    terms, outputs = objective.terms(model.eval(), model, batch, True)
    assert set(terms) == {"cross_entropy"} and outputs.logits.shape[:2] == (4, 12)
    loss = terms["cross_entropy"].sum / terms["cross_entropy"].count
    torch.testing.assert_close(loss, model(**batch).loss, rtol=1e-5, atol=0)
    assert objective.metrics({"cross_entropy": 2.0})["perplexity"] == pytest.approx(7.389056)


def test_without_a_perturbation_it_is_plain_training() -> None:
    model, batch = tiny("bert").train(), tokens()
    model(**batch).loss.backward()
    plain = gradients(model)
    trained(FGM(LanguageModeling(), epsilon=1e-12, weight=0.5), model, batch)
    assert_same(gradients(model), {name: 1.5 * value for name, value in plain.items()})
    trained(FreeLB(LanguageModeling(), epsilon=1e-12), model, batch)
    assert_same(gradients(model), plain)


def embeddings_seen(model: Any, objective: Objective, batch: Any) -> list[torch.Tensor]:
    """What BERT's first layer norm is given in each pass."""
    seen: list[torch.Tensor] = []
    norm = model.base_model.embeddings.LayerNorm
    handle = norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    objective.prepare(model, batch)
    seen.clear()
    trained(objective, model, batch)
    handle.remove()
    return seen[-2 if isinstance(objective, FGM) else -objective.num_passes :]


def test_perturbations_have_length_epsilon_and_spare_padding() -> None:
    batch = classes()
    clean, perturbed = embeddings_seen(classifier().train(), FGM(Classification(), 0.7), batch)
    delta = perturbed - clean
    # sums of embeddings of size 0.1 are rounded to 2^-27, 400 of them
    assert delta.norm(dim=(1, 2)).tolist() == pytest.approx([0.7] * 4, rel=1e-5)
    assert not delta[batch["attention_mask"] == 0].any()


def test_freelb_stays_in_its_ball() -> None:
    objective = FreeLB(Classification(), epsilon=0.2, steps=4, step_size=1.0)
    seen = embeddings_seen(classifier().train(), objective, classes())
    # every step is longer than the ball's diameter
    for first, second in pairwise(seen):
        assert ((first - second).norm(dim=(1, 2)) <= 0.4 * (1 + 1e-5)).all()


def test_an_example_without_labels_is_not_moved() -> None:
    batch = classes()
    batch["labels"][0] = -100
    clean, perturbed = embeddings_seen(classifier().train(), FGM(Classification(), 0.7), batch)
    moved = (perturbed - clean).norm(dim=(1, 2))
    assert moved[0] == 0
    assert moved[1:].tolist() == pytest.approx([0.7] * 3, rel=1e-5)


@pytest.mark.parametrize("kind", [FGM, PGD, FreeLB])
def test_all_passes_draw_the_same_dropout(kind: Any) -> None:
    model = classifier(hidden_dropout_prob=0.3).train()
    torch.manual_seed(0)
    means = list(trained(kind(Classification(), epsilon=1e-9), model, classes()).values())
    after = torch.get_rng_state()
    torch.manual_seed(0)
    plain = trained(Classification(), model, classes())["cross_entropy"]
    assert torch.equal(after, torch.get_rng_state()), "as if there had been one pass"
    torch.testing.assert_close(torch.stack(means), plain.expand(len(means)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [FGM, PGD, FreeLB])
def test_the_model_is_left_as_it_was(kind: Any) -> None:
    model, batch = tiny("t5").train(), tokens()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained(kind(LanguageModeling()), model, batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert num_hooks(model) == 0 and model.training

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    handle = model.lm_head.register_forward_pre_hook(fail)
    objective = kind(LanguageModeling(at_head=False))
    with pytest.raises(RuntimeError, match="no memory"):
        trained(objective, model, batch)
    handle.remove()
    assert num_hooks(model) == 0


@pytest.mark.parametrize("kind", [FGM, PGD, FreeLB])
def test_bfloat16_autocast_gives_nearly_the_same(kind: Any) -> None:
    model, batch = classifier().train(), classes()
    trained(kind(Classification()), model, batch)
    expected = torch.cat([g.flatten() for g in gradients(model).values()])
    objective = kind(Classification())
    objective.prepare(model, batch)
    counts = objective.counts(batch)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        for terms in objective.passes(model, model, batch):
            with torch.autocast("cpu", enabled=False):
                total = sum(
                    objective.weights.get(name, 1.0) * term.sum / counts[name]
                    for name, term in terms.items()
                )
                total.backward()
    found = torch.cat([g.flatten() for g in gradients(model).values()])
    assert torch.cosine_similarity(found, expected, dim=0) > 0.995  # 8 bits a number
    assert found.norm() == pytest.approx(float(expected.norm()), rel=0.05)


@pytest.mark.parametrize("factor", [2.0**16, 2.0**-16])
def test_a_loss_scaler_cancels(factor: float) -> None:
    model, batch = classifier().train(), classes()
    trained(FGM(Classification()), model, batch)
    expected = gradients(model)
    objective = FGM(Classification())
    objective.prepare(model, batch)
    counts = objective.counts(batch)
    model.zero_grad()
    for terms in objective.passes(model, model, batch):
        total = sum(term.sum / counts[name] for name, term in terms.items())
        (factor * total).backward()
    assert_same({name: value / factor for name, value in gradients(model).items()}, expected)


@pytest.mark.parametrize("kind", [FGM, PGD, FreeLB])
def test_checkpointed_activations_change_nothing(kind: Any) -> None:
    model, batch = tiny("bert").train(), tokens()
    trained(kind(LanguageModeling()), model, batch)
    expected = gradients(model)
    model.activation_checkpointing_enable()
    trained(kind(LanguageModeling()), model, batch)
    assert_same(gradients(model), expected, tolerance=1e-6)


def test_reentrant_checkpoints_do_where_no_pass_is_apart() -> None:
    model, batch = tiny("bert").train(), tokens()
    trained(FGM(LanguageModeling()), model, batch)
    expected = gradients(model)
    model.activation_checkpointing_enable({"use_reentrant": True})
    trained(FGM(LanguageModeling()), model, batch)
    assert_same(gradients(model), expected, tolerance=1e-6)
    with pytest.raises(RuntimeError, match="use_reentrant"):
        trained(PGD(LanguageModeling(), steps=2), model, batch)


class TwoTerms(Objective):
    """Two terms that pull an example apart, with counts that differ from batch to batch."""

    def counts(self, batch: Any) -> dict[str, torch.Tensor]:
        return {"up": batch["up"].sum(), "down": batch["down"].sum()}

    def terms(self, model: nn.Module, module: nn.Module, batch: Any, with_outputs: bool) -> Any:
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        counts = self.counts(batch)
        up = (batch["up"] * logits[:, 0].square()).sum()
        down = (batch["down"] * logits[:, 1].exp()).sum()
        return {"up": LossSum(up, counts["up"]), "down": LossSum(down, counts["down"])}, None


def test_several_terms_pull_as_in_the_whole_batch() -> None:
    """A piece of a batch must not weigh them by its own counts."""
    model = classifier().train()
    batch = {**classes(), "up": torch.tensor([1, 1, 1, 0]), "down": torch.tensor([1, 0, 0, 0])}
    trained(PGD(TwoTerms(), steps=3), model, batch)
    expected = gradients(model)
    objective = PGD(TwoTerms(), steps=3)
    objective.prepare(model, batch)
    counts = objective.batch_counts = objective.counts(batch)
    model.zero_grad()
    for row in range(4):
        piece = {name: value[row : row + 1] for name, value in batch.items()}
        for terms in objective.passes(model, model, piece):
            sum(term.sum / counts[name] for name, term in terms.items()).backward()
    assert_same(gradients(model), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda it: FGM(it, epsilon=0), "epsilon is 0; it must be above 0"),
        (lambda it: FGM(it, epsilon=float("inf")), "epsilon is inf"),
        (lambda it: FGM(it, weight=-1), "weight is -1; it must be above 0"),
        (lambda it: PGD(it, steps=0), "steps is 0; it must be a whole number, at least 1"),
        (lambda it: PGD(it, steps=1.5), r"steps is 1\.5"),
        (lambda it: FreeLB(it, steps=True), "steps is True"),
        (lambda it: FreeLB(it, step_size=float("nan")), "step_size is nan"),
        (lambda it: FGM(None), "FGM wraps an objective, such as .* it was given None"),
        (lambda it: PGD("language_modeling"), "PGD wraps an objective"),
        (lambda it: FGM(FreeLB(it)), "FGM cannot wrap FreeLB"),
        (lambda it: FGM(RDrop(it)), "FGM cannot wrap RDrop"),
        (lambda it: FreeLB(PCGrad()), "FreeLB cannot wrap PCGrad"),
    ],
)
def test_bad_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(LanguageModeling())


def test_compiled_models_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    model, batch = classifier().train(), classes()
    objective = FGM(Classification())
    objective.prepare(model, batch)
    compiled: Any = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match="a compiled model"):
        next(objective.passes(compiled, model, batch))
