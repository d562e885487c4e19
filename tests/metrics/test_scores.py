"""`Scores` in every slot tell the same numbers, of every example once; options are checked."""

import copy
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, Trainer

import hf_tfopt as tfo
from hf_tfopt.metrics import is_higher_better
from hf_tfopt.metrics.classification import F1
from tests.metrics.scores_run import GENERATING, NUM_ROWS, Guesser, Rows, arguments, run
from tests.models import VOCABULARY, tiny
from tests.processes import TwoInterpreters

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    return run(tmp_path_factory.mktemp("alone"))


def expected() -> dict[str, float]:
    logits = Guesser().logits.detach().bfloat16().float()
    labels = torch.arange(NUM_ROWS) % 2
    guesses = logits.argmax(-1)
    hits = int((guesses & labels).sum())
    return {
        "eval_accuracy": (guesses == labels).double().mean().item(),
        "eval_f1": 2 * hits / int(guesses.sum() + labels.sum()),
        "eval_first": logits[:, 0].double().sum().item(),
        "eval_num": NUM_ROWS,
    }


def test_every_way_tells_the_same(alone: dict[str, dict[str, float]]) -> None:
    assert len(alone) == 11
    for way, found in alone.items():
        assert found == alone["ours"] or way == GENERATING, way
    found = {key: alone["ours"][key] for key in expected()}
    assert found == pytest.approx(expected(), rel=1e-12)  # float64
    assert alone["ours"]["eval_accuracy_low"] < found["eval_accuracy"]


@pytest.mark.invariant
def test_two_processes_count_every_example_once(
    alone: dict[str, dict[str, float]], two_interpreters: TwoInterpreters, tmp_path: Path
) -> None:
    """13 rows in batches of 2 on two processes: accelerate fills the last round up with 3."""
    out, script = tmp_path / "out.json", ROOT / "tests/metrics/scores_run.py"
    done = two_interpreters.run(script, out, tmp_path)
    both = json.loads(out.read_text())
    of_all = both.pop("ours, stream that each reads")
    texts = both.pop(GENERATING)
    assert (texts["eval_num"], texts["eval_empty"]) == (13, 0)
    assert texts == pytest.approx(alone[GENERATING], rel=1e-6)  # single precision, other batches
    for way, found in both.items():
        assert found == pytest.approx(alone[way], rel=1e-12), way  # sums in another order
    # nobody knows how long it is: told, not hidden
    assert of_all["eval_num"] == 16
    assert "counted twice" in done.stderr


def test_what_was_broken_off_is_forgotten(tmp_path: Path) -> None:
    class Breaks(Rows):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == 7:
                raise OSError("gone")
            return super().__getitem__(index)

    scores = tfo.Scores("accuracy")
    trainer = tfo.TfoptTrainer(Guesser(), arguments(tmp_path), compute_metrics=scores)
    with pytest.raises(OSError, match="gone"):
        trainer.evaluate(Breaks())
    assert trainer.preprocess_logits_for_metrics is None
    assert not trainer.args.batch_eval_metrics
    found = trainer.evaluate(Rows())
    assert found["eval_accuracy"] == pytest.approx(expected()["eval_accuracy"])


def test_no_logits_are_held(tmp_path: Path) -> None:
    scores = tfo.Scores("accuracy", "f1", "perplexity", is_causal=True)
    logits = torch.randn(4, 6, 50)
    labels = torch.randint(2, (4, 6))
    kept = scores.preprocess((logits, torch.zeros(4)), labels)
    # accuracy 2, each class 3, perplexity 2
    assert kept.shape == (4, 2 + 3 * 50 + 2)
    few = tfo.Scores("accuracy")
    for _ in range(5):
        few((few.preprocess(logits, labels), labels), compute_result=False)
    held = tfo.Scores("spearman", intervals=0.95)
    for _ in range(3):  # not joined with each batch, which would copy all before it
        held((torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 1.0])), compute_result=False)
    assert [len(pieces) for pieces in held._rows.values()] == [3]
    assert [piece.shape for pieces in few._rows.values() for piece in pieces] == [(1, 2)]
    assert few.preprocess(logits, None) is logits, "nothing to score: what predict() returns"


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_perplexity_is_that_of_our_trainer(name: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (7, 8), generator=generator)
    labels = ids.masked_fill(torch.rand(7, 8, generator=generator) < 0.5, -100)
    rows = [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]
    model = tiny(name)
    ours = tfo.TfoptTrainer(model, arguments(tmp_path), eval_dataset=rows).evaluate()
    scores = tfo.Scores("perplexity", "mlm_accuracy", is_causal=name == "gpt2")
    theirs = Trainer(model, arguments(tmp_path), eval_dataset=rows, compute_metrics=scores)
    found = theirs.evaluate()["eval_perplexity"]
    assert found == pytest.approx(ours["eval_perplexity"], rel=1e-6)  # fp32 sums


def test_intervals_hold_what_is_true_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        labels = np.zeros(80, dtype=np.int64)
        guesses = (generator.random(80) < 0.3).astype(np.int64)
        scores = tfo.Scores("accuracy", intervals=0.9, num_resamples=200, seed=seed)
        found = scores((guesses, labels))
        held += found["accuracy_low"] <= 0.7 <= found["accuracy_high"]
    # 180 of 200 if exact, spread 4.2; the percentile bootstrap of 80 examples is a little narrow
    assert 162 <= held <= 192


def test_intervals_are_of_one_draw_and_of_their_seed() -> None:
    given = torch.randn(40, 3), torch.randint(3, (40,))

    def made(**options: Any) -> dict[str, float]:
        return tfo.Scores("accuracy", "f1", average="micro", intervals=0.8, **options)(given)

    found = made()
    assert list(found) == [*tfo.score_keys("accuracy", "f1", has_intervals=True)]
    assert found["accuracy_low"] == found["f1_low"] < found["accuracy"] < found["accuracy_high"]
    assert made() == found
    assert made(seed=1) != found


MISTAKES = [
    ((), {}, "needs a metric"),
    (("acuracy",), {}, "did you mean 'accuracy'"),
    (("f1",), {"averge": "macro"}, "did you mean 'average'"),
    (("accuracy",), {"average": "macro"}, "none of accuracy has an option 'average'"),
    (("perplexity",), {}, "needs is_causal"),
    (("entities",), {}, "needs label_names"),
    (("f1", "f1"), {}, "two metrics would tell f1"),
    (("f1",), {"intervals": 95}, "between 0 and 1"),
    (("f1",), {"intervals": 0.9, "num_resamples": 0}, "at least 1"),
    ((F1,), {}, r"F1\(...\), not its class"),
]


@pytest.mark.parametrize(("names", "options", "answer"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_mistakes_are_answered_at_once(
    names: tuple[Any, ...], options: dict[str, Any], answer: str
) -> None:
    with pytest.raises(ValueError, match=answer):
        tfo.Scores(*names, **options)


@pytest.mark.parametrize(
    ("scores", "options", "answer"),
    [
        (tfo.Scores("accuracy"), {"prediction_loss_only": True}, "nothing to score"),
        (tfo.Scores("f1"), {}, "these are 4: give average"),
        (tfo.Scores("entities", label_names=["O", "B-X"]), {}, "2 names for 4 classes"),
        (tfo.Scores("bleu"), {}, "bleu is told with predict_with_generate"),
    ],
    ids=["loss only", "classes", "names", "texts"],
)
def test_a_trainer_says_before_it_trains_what_cannot_be_scored(
    scores: tfo.Scores, options: dict[str, Any], answer: str, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
    config = BertConfig(num_labels=4, num_hidden_layers=1, vocab_size=9, **sizes)
    model = BertForTokenClassification(config)
    with pytest.raises(ValueError, match=answer):
        tfo.TfoptTrainer(model, arguments(tmp_path, **options), compute_metrics=scores)


def test_scores_can_be_copied() -> None:
    given = torch.randn(9, 3), torch.randint(3, (9,))
    scores = tfo.Scores("accuracy", "calibration_error")
    assert copy.deepcopy(scores)(given) == pickle.loads(pickle.dumps(scores))(given)


def test_generated_ids_are_no_logits() -> None:
    with pytest.raises(ValueError, match="f1 needs logits"):
        tfo.Scores("f1").preprocess(torch.ones(2, 5).long(), torch.ones(2, 5).long())


def test_nothing_to_score(caplog: pytest.LogCaptureFixture) -> None:
    scores = tfo.Scores("accuracy")
    with pytest.raises(ValueError, match="no example was evaluated"):
        scores((torch.zeros(0, 2), torch.zeros(0).long()))
    with caplog.at_level(logging.WARNING):
        found = scores((torch.zeros(2, 2), torch.full((2,), -100)))
    assert np.isnan(found["accuracy"])
    assert "no label to score" in caplog.text


@pytest.mark.parametrize(
    ("key", "is_higher"),
    [
        ("eval_loss", False),
        ("eval_german_perplexity", False),
        ("perplexity_low", False),
        ("calibration_error", False),
        ("eval_mean_squared_error_high", False),
        ("eval_f1", True),
        ("eval_sentence_order_accuracy", True),
        ("lossless", True),
    ],
)
def test_which_way_is_better(key: str, is_higher: bool) -> None:
    assert is_higher_better(key) is is_higher
