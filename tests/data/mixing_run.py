"""A short training on a mixture of three kinds of datasets; run alone or under torchrun.

`python mixing_run.py OUT FOLDER` trains, and once more from a checkpoint in the middle of the
second epoch, and writes what both came to.
"""

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, Trainer

import hf_tfopt as tfo
from hf_tfopt.data.mixing import Mixture
from tests.data.test_collators import NUM_IDS, SIZES, make_tokenizer
from tests.test_trainer import arguments

SIZE = {"large": 40, "middle": 18, "small": 5}
ROWS = 32  # of an epoch: 8 batches of 4
STOPPED = 6  # in the middle of the second epoch: it has 4 steps


def mixture() -> Mixture:
    """Rows in Arrow, rows as dicts of Python lists with a further column, and a plain list."""
    ids = {
        task: [
            [2, *(5 + (17 * row + 7 * place + len(task)) % 195 for place in range(4 + row % 9)), 3]
            for row in range(size)
        ]
        for task, size in SIZE.items()
    }
    return tfo.mix(
        {
            "large": tfo.ArrowRows(datasets.Dataset.from_dict({"input_ids": ids["large"]})),
            "middle": datasets.Dataset.from_dict(
                {"input_ids": ids["middle"], "text": ["unused"] * SIZE["middle"]}
            ),
            "small": [{"input_ids": row} for row in ids["small"]],
        },
        temperature=2.0,
        num_rows=ROWS,
    )


def make_trainer(folder: Path, how: str = "tfopt", dropout: float = 0.1, **options: Any) -> Trainer:
    """TfoptTrainer and a masked model, or a stock Trainer, attached to, and a causal one."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 3,
        "max_steps": -1,
        "save_strategy": "steps",
        "save_steps": STOPPED,
        "optim": "sgd",
        "learning_rate": 0.3,
        **options,
    }
    args = arguments(folder, **settings)
    if how == "tfopt":
        rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        model = BertForMaskedLM(BertConfig(**SIZES, **rates))
        collator = tfo.MaskedLMCollator(make_tokenizer(), probability=0.3)
        return tfo.TfoptTrainer(model, args, data_collator=collator, train_dataset=mixture())
    sizes = {"vocab_size": NUM_IDS, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    special = {"bos_token_id": 2, "eos_token_id": 3}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    model = GPT2LMHeadModel(GPT2Config(**sizes, **special, **rates))
    collator = tfo.CausalLMCollator(make_tokenizer())
    return tfo.attach(Trainer(model, args, data_collator=collator, train_dataset=mixture()))


def result(trainer: Trainer) -> dict[str, list[float]]:
    """Loss of every step, and the final weights."""
    weights = [parameter.detach().flatten() for parameter in trainer.model.parameters()]
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": logged, "weights": torch.cat(weights).tolist()}


def both(folder: Path, how: str = "tfopt", **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a training comes to that was never stopped, and one that went on."""
    whole = make_trainer(folder, how, **options)
    whole.train()
    resumed = make_trainer(folder, how, **options)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{STOPPED}"))
    return result(whole), result(resumed)


def main(out: str, folder: str) -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    found = both(Path(folder), dropout=0.0, gradient_accumulation_steps=1)
    if os.environ.get("RANK", "0") == "0":
        Path(out).write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
