"""Six updates of a tiny BERT, alone or under DeepSpeed's ZeRO: `python zero.py STAGE OPTIMIZER`.

Prints the entries of the log as JSON, or the error that stopped it. A process of its own, as
DeepSpeed cannot be left again.
"""

import json
import sys
import tempfile
from typing import Any

import torch
from transformers import TrainingArguments

import hf_tfopt as tfo
from tests.invariants.splits import Rows
from tests.models import tiny


def config(stage: int) -> dict[str, Any]:
    """As the host documents it for an optimizer that is not DeepSpeed's own."""
    return {
        "zero_optimization": {"stage": stage},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def main(stage: int, name: str) -> None:
    torch.manual_seed(0)
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        deepspeed=config(stage) if stage else None,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=6,
        logging_steps=1,
        lr_scheduler_type="linear",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    try:
        trainer = tfo.TfoptTrainer(
            tiny("bert"),
            arguments,
            train_dataset=Rows(24),
            optimizer_cls_and_kwargs=tfo.optimizer(name, lr=1e-3, weight_decay=0.1),
            callbacks=[tfo.GroupRates()],
        )
        trainer.train()
    except ValueError as error:
        print(json.dumps(str(error)))
        return
    assert trainer.is_deepspeed_enabled == bool(stage)
    print(json.dumps([entry for entry in trainer.state.log_history if "loss" in entry]))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
