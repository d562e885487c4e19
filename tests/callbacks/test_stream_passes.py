"""Steps of micro-batches from two passes over a stream, and what happens if nobody asked."""

from pathlib import Path

import datasets
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, Trainer

import hf_tfopt as tfo
from tests.callbacks.runs import history_of, weights_of
from tests.callbacks.test_stream_state import BUFFER, Source, Watched, assert_same_run, trained
from tests.data.test_collators import SIZES, WIDTH, examples, make_tokenizer
from tests.test_trainer import arguments

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize("is_attached", [False, True])
def test_a_step_has_micro_batches_of_two_passes(is_attached: bool, tmp_path: Path) -> None:
    """5 batches a pass, 4 a step: as of a dataset that has those of all passes one by one."""
    rows = list(Source().packed())[:10]
    stream, whole = (datasets.Dataset.from_list(rows * times) for times in (1, 4))
    found = []
    for data in (stream.to_iterable_dataset(), whole):
        torch.manual_seed(0)
        trainer = Trainer if is_attached else tfo.TfoptTrainer
        collator = tfo.MaskedLMCollator(make_tokenizer())
        options = {"gradient_accumulation_steps": 4, "train_sampling_strategy": "sequential"}
        args = arguments(tmp_path, per_device_train_batch_size=2, max_steps=5, **options)
        model = BertForMaskedLM(BertConfig(**SIZES, **NO_DROPOUT))  # each pass draws once more
        made = trainer(model, args, collator, data)
        if is_attached:
            tfo.attach(made)
        collator.for_training = collator.__call__  # the same masks in all passes
        made.train()
        found.append([entry[name] for entry in history_of(made) for name in ("loss", "grad_norm")])
    assert found[0] == pytest.approx(found[1], rel=1e-5)  # 32 bits, other orders of sums


def test_a_pass_of_fewer_batches_than_a_step(tmp_path: Path) -> None:
    stream = examples(4).to_iterable_dataset()
    with pytest.raises(ValueError, match="fewer batches than gradient_accumulation_steps=4"):
        trained(tmp_path, stream, max_steps=3, gradient_accumulation_steps=4)


@pytest.mark.invariant
def test_it_is_added_and_resumes_what_was_left_over_and_a_run_that_is_over(tmp_path: Path) -> None:
    """Stopped at the end of a pass, whose last batches wait for the next one's."""
    source, ends = Source(), {"save_strategy": "epoch", "gradient_accumulation_steps": 4}
    runs: list[Watched] = []
    for at in (None, "checkpoint-3", "checkpoint-8"):
        torch.manual_seed(0)
        model, collator = BertForMaskedLM(BertConfig(**SIZES)), tfo.MaskedLMCollator
        args = arguments(tmp_path, per_device_train_batch_size=4, max_steps=8, **ends)
        stream = source.packed()
        runs.append(Watched(model, args, collator(make_tokenizer()), stream))
        runs[-1].train(resume_from_checkpoint=None if at is None else str(tmp_path / at))
        assert runs[-1].train_dataset is stream
        assert runs[-1].state.global_step == 8
    assert_same_run(runs[1], runs[0])
    assert torch.equal(weights_of(runs[2].model), weights_of(runs[0].model))


def test_nobody_asked_for_it_nothing_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another number of workers; a checkpoint without it, resumed at a pass's end; other rows."""
    args = {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 7}
    other = tfo.pack_stream(Source().examples(), WIDTH, buffer=BUFFER, seed=1)
    kinds = [(Trainer, "0", {}, None, None), (tfo.TfoptTrainer, "1", {}, "0", None)]
    kinds += [(tfo.TfoptTrainer, "2", {"dataloader_num_workers": 1}, "1", None)]
    kinds += [(tfo.TfoptTrainer, "3", {}, "1", other)]
    for kind, folder, options, before, stream in kinds:
        model, collator = BertForMaskedLM(BertConfig(**SIZES)), tfo.MaskedLMCollator
        made = arguments(tmp_path / folder, **args, max_steps=30, **options)
        callbacks = [mask := collator(make_tokenizer())]
        trainer = kind(model, made, mask, stream or Source().packed(), callbacks=callbacks)
        step = {"0": 14, None: 0}.get(before, 21)
        at = before and str(tmp_path / before / f"checkpoint-{step}")
        trainer.train(resume_from_checkpoint=at)
        assert trainer.state.global_step == 30
    told = [r.getMessage() for r in caplog.records if "StreamState" in r.getMessage()]
    assert ["does not tell" in told[0], "resume with 0" in told[1]] == [True, True]
    assert "goes on behind as many rows" in caplog.text
