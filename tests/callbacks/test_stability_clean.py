"""A whole training of 10,000 steps without a fault: the longest test of the callbacks."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput

import hf_tfopt as tfo
from tests.callbacks.runs import history_of, trainer_with
from tests.models import VOCABULARY


class Words(nn.Module):
    """Tells a word from itself, its place and the mean of its row: half the time of a BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 24)
        self.places = nn.Embedding(12, 24)
        self.hidden = nn.Linear(48, 48)
        self.head = nn.Linear(48, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Any = None, **_: Any) -> MaskedLMOutput:
        # the host looks for the name of the labels here; the loss is the objective's
        own = self.words(input_ids) + self.places.weight
        row = own.mean(1, keepdim=True).expand_as(own)
        return MaskedLMOutput(logits=self.head(self.hidden(torch.cat([own, row], -1)).tanh()))


def test_no_false_alarm_in_ten_thousand_steps(tmp_path: Path) -> None:
    """From a loss of 4.6 to one below 0.01, batches of four: noise of every width on the way."""
    torch.manual_seed(0)
    trainer = trainer_with(
        tmp_path,
        [tfo.StabilityGuard("warn")],
        "attach",
        Words(),
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
    assert last["loss"] < 0.01  # it has learned its rows
