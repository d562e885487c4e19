"""GradNorm and PCGrad on a real model: the weights and the gradients of the papers' algorithms."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig

from hf_tfopt.losses.multitask import pcgrad_orders
from hf_tfopt.losses.reduction import combine
from hf_tfopt.objectives.adversarial import FGM
from hf_tfopt.objectives.gradient_balance import GradNorm, PCGrad, last_layer
from hf_tfopt.objectives.multitask import Multitask
from hf_tfopt.surgery.multitask import MultitaskModel
from tests.invariants.cases.multitask import TASKS, model, rows
from tests.models import NO_DROPOUT, SIZES
from tests.processes import TwoInterpreters
from tests.references import multitask as reference

NAMES = sorted(TASKS)
ROOT = Path(__file__).parents[2]


def take_step(
    objective: Multitask, made: MultitaskModel, batches: list[dict[str, Any]], scale: float = 1.0
) -> None:
    """What the trainer does with the micro-batches of one step, in one process."""
    pieces = [objective.counts(batch) for batch in batches]
    counts = {name: torch.stack([piece[name] for piece in pieces]).sum() for name in pieces[0]}
    for batch in batches:
        passes = objective.passes(made, made, batch)
        for _ in range(objective.num_passes):
            (combine(next(passes), counts, objective.weights) * scale).backward()
    objective.gradients_ready(made, lambda tensor: tensor)


def cut(batch: dict[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    starts = range(0, len(batch["task"]), size)
    return [{key: value[start : start + size] for key, value in batch.items()} for start in starts]


def means(made: MultitaskModel, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each task's mean loss of the whole batch, with its graph."""
    objective = Multitask()
    objective.bind(made)
    terms, _ = objective.terms(made, made, batch, False)
    return {name: term.sum / term.count for name, term in terms.items()}


@pytest.mark.parametrize("size", [16, 3])
def test_gradnorm_moves_the_weights_as_the_paper(size: int) -> None:
    made = model().train()
    objective = GradNorm(alpha=0.7, lr=0.01)
    objective.bind(made)
    expected, initial = [1.0] * 4, []
    for step in range(3):
        batch = rows(16, step + 3)
        take_step(objective, made, cut(batch, size))
        found, first = made.task_weights.clone(), made.initial_losses.clone()
        losses = means(twin := model().train(), batch)
        initial = initial or [float(loss.detach()) for loss in losses.values()]
        layer = last_layer(twin)
        for parameter in layer:
            assert parameter.shape[0] in (32, 48)
        flat = FlatLosses(list(losses.values()), layer)
        expected = reference.gradnorm_step(
            expected, flat.shared, flat.losses, initial, objective.alpha, objective.lr
        )
        # fp32 gradients of a whole batch, or of its pieces
        assert found.tolist() == pytest.approx(expected, rel=1e-4)
        assert first.tolist() == pytest.approx(initial, rel=1e-5)
        assert float(found.sum()) == pytest.approx(4)


class FlatLosses:
    """Losses linearised at the shared layer, so that one tensor stands for all its matrices."""

    def __init__(self, losses: list[torch.Tensor], layer: list[torch.nn.Parameter]):
        self.shared = torch.zeros(sum(p.numel() for p in layer), requires_grad=True)
        self.losses = []
        for loss in losses:
            pieces = torch.autograd.grad(loss, layer, retain_graph=True)
            slope = torch.cat([piece.flatten() for piece in pieces])
            self.losses.append(loss.detach() + self.shared @ slope)


def test_gradnorm_trains_on_the_weighted_losses() -> None:
    made = model().train()
    objective = GradNorm()
    objective.bind(made)
    made.task_weights.copy_(torch.tensor([0.5, 2.0, 1.2, 0.3]))
    factors = made.task_weights.tolist()
    batch = rows(16, 3)
    take_step(objective, made, [batch])
    twin = model().train()
    sum(w * loss for w, loss in zip(factors, means(twin, batch).values(), strict=True)).backward()
    for own, other in zip(made.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_gradnorm_keeps_its_weights_where_a_loss_is_not_finite() -> None:
    made = model().train()
    objective = GradNorm()
    objective.bind(made)
    with torch.no_grad():
        made.heads["topic"].classifier.bias.fill_(torch.inf)
    take_step(objective, made, [rows(16, 3)])
    assert made.task_weights.tolist() == [1.0] * 4


def test_gradnorm_needs_a_last_layer_that_is_trained() -> None:
    made = model().train()
    for parameter in made.encoder.parameters():
        parameter.requires_grad = False
    objective = GradNorm()
    objective.bind(made)
    with pytest.raises(ValueError, match="gradients of the last layer of BertModel"):
        objective.terms(made, made, rows(8, 0), False)
    for wrong in ({"alpha": -1.0}, {"lr": 0.0}, {"alpha": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            GradNorm(**wrong)


@pytest.mark.parametrize("size", [16, 5, 1])
def test_pcgrad_gives_the_projected_gradients(size: int) -> None:
    made = model().train()
    objective = PCGrad(seed=4, weights={"words": 3.0})
    objective.bind(made)
    objective.step = 6
    batch = rows(16, 3)
    take_step(objective, made, cut(batch, size))
    twin = model().train()
    shared = list(twin.encoder.parameters())
    gradients = []
    for name, loss in means(twin, batch).items():
        weighted = loss * (3.0 if name == "words" else 1.0)
        pieces = torch.autograd.grad(weighted, shared, retain_graph=True, materialize_grads=True)
        gradients.append(torch.cat([piece.flatten() for piece in pieces]))
    conflicts = sum(float(a @ b) < 0 for a in gradients for b in gradients)
    assert conflicts >= 2, "this batch has nothing to project"
    expected = reference.pcgrad(gradients, pcgrad_orders(4, seed=4, step=6))
    found = torch.cat([parameter.grad.flatten() for parameter in made.encoder.parameters()])
    # fp32 gradients of a whole batch, or of its pieces
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert float((found - torch.stack(gradients).sum(0)).abs().max()) > 1e-2
    for name, loss in means(twin, batch).items():
        weighted = loss * (3.0 if name == "words" else 1.0)
        own = torch.autograd.grad(weighted, list(twin.heads[name].parameters()))
        for parameter, gradient in zip(made.heads[name].parameters(), own, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [GradNorm, PCGrad])
def test_the_scale_of_mixed_precision_is_in_the_gradients_alone(kind: type[Multitask]) -> None:
    """A GradScaler multiplies the loss; it divides the gradients again when it clips them."""
    models = []
    for scale in (1.0, 1024.0):
        made = model().train()
        objective = kind()
        objective.bind(made)
        take_step(objective, made, cut(rows(16, 3), 5), scale)
        models.append(made)
    for plain, scaled in zip(*(made.parameters() for made in models), strict=True):
        assert torch.equal(plain.grad * 1024, scaled.grad)
    assert torch.equal(*(getattr(made, "task_weights", torch.ones(1)) for made in models))


def test_pcgrad_runs_each_row_once_and_keeps_no_gradients() -> None:
    made = model().train()
    objective = PCGrad()
    objective.bind(made)
    num_rows: list[int] = []
    made.encoder.register_forward_hook(lambda module, given, out: num_rows.append(len(out[0])))
    batch = rows(16, 3)
    take_step(objective, made, cut(batch, 5))
    assert sum(num_rows) == 16
    assert objective._gradients == {} and objective._open is None


def test_pcgrad_cannot_be_wrapped() -> None:
    with pytest.raises(ValueError, match="FGM cannot wrap PCGrad"):
        FGM(PCGrad())


def test_pcgrad_of_parts_that_are_frozen() -> None:
    torch.manual_seed(0)
    made = MultitaskModel.from_encoder(BertConfig(**SIZES, **NO_DROPOUT), TASKS).train()
    made.encoder.embeddings.requires_grad_(False)
    made.heads["tags"].requires_grad_(False)
    objective = PCGrad()
    objective.bind(made)
    take_step(objective, made, cut(rows(16, 3), 4))
    assert made.encoder.embeddings.word_embeddings.weight.grad is None
    assert made.heads["tags"].classifier.weight.grad is None
    assert made.heads["topic"].classifier.weight.grad is not None


@pytest.mark.parametrize("kind", [GradNorm, PCGrad])
def test_shards_are_refused(kind: type[Multitask]) -> None:
    made = model().train()
    objective = kind()
    objective.bind(made)
    made.encoder.pooler.dense.weight.ds_id = 3  # as DeepSpeed's ZeRO-3 marks its shares
    with pytest.raises(ValueError, match=f"{kind.__name__} needs whole gradients"):
        next(objective.passes(made, made, rows(8, 0)))


@pytest.mark.invariant
def test_a_sharded_model_has_its_own_gradients_or_is_refused(
    two_interpreters: TwoInterpreters,
) -> None:
    """Fixed weights and uncertainties on FSDP2, two processes; the others say what they need."""
    program = Path(__file__).with_name("sharded_tasks.py")
    assert "equal" in two_interpreters.run(program).stdout
