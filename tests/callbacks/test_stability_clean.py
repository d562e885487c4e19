"""A whole training of 10,000 steps without a fault: the longest test of the callbacks."""

from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM

import hf_tfopt as tfo
from tests.callbacks.runs import history_of, trainer_with
from tests.models import NO_DROPOUT, SIZES


def test_no_false_alarm_in_ten_thousand_steps(tmp_path: Path) -> None:
    """From a loss of 4.6 to one of 0.002, batches of four: noise of every width on the way."""
    torch.manual_seed(0)
    narrow = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24}
    model = BertForMaskedLM(BertConfig(**{**SIZES, **NO_DROPOUT, **narrow}))
    trainer = trainer_with(
        tmp_path,
        [tfo.StabilityGuard("warn")],
        "attach",
        model,
        num_rows=256,
        max_steps=10_000,
        gradient_accumulation_steps=1,
        logging_steps=2_000,
        warmup_steps=500,
        lr_scheduler_type="linear",
    )
    trainer.train()
    last = history_of(trainer)[-1]
    assert last["num_bad_steps"] == 0, "seed 0"
    assert last["loss"] < 0.1  # it has learned its rows
