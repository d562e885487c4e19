"""One encoder with four heads: tasks mixed within the batch, weighed in every way."""

import math

import torch
from transformers import BertConfig

from hf_tfopt.objectives.gradient_balance import GradNorm, PCGrad
from hf_tfopt.objectives.multitask import Multitask, UncertaintyWeighting
from hf_tfopt.surgery.multitask import MultitaskModel
from tests.invariants.cases import Case
from tests.models import NO_DROPOUT, SIZES, VOCABULARY

TASKS = {
    "topic": {"problem": "single_label_classification", "num_labels": 3},
    "score": {"problem": "regression"},
    "tags": {"problem": "multi_label_classification", "num_labels": 4},
    "words": {"problem": "token_classification", "num_labels": 5},
}
WIDTH = 12


def model(seed: int = 0) -> MultitaskModel:
    torch.manual_seed(seed)
    made = MultitaskModel.from_encoder(BertConfig(**SIZES, **NO_DROPOUT), TASKS)
    for parameter in made.parameters():  # large enough that the gradients conflict
        torch.nn.init.normal_(parameter, std=0.15)
    return made


def rows(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Rows of every task, unequally many, in no order; some words without a label."""
    generator = torch.Generator().manual_seed(seed)
    names = sorted(TASKS)
    share = torch.tensor([1.0, 1.0, 3.0, 2.0])
    task = torch.multinomial(share, num_rows, replacement=True, generator=generator)
    task[: len(names)] = torch.arange(len(names))[:num_rows]
    task = task[torch.randperm(num_rows, generator=generator)]
    ids = torch.randint(5, VOCABULARY, (num_rows, WIDTH), generator=generator)
    labels = torch.full((num_rows, WIDTH), -100)
    values = torch.full((num_rows, 4), math.nan)
    for place, number in enumerate(task.tolist()):
        name = names[number]
        if name == "words":
            labels[place] = torch.randint(-1, 5, (WIDTH,), generator=generator)
            labels[place][labels[place] < 0] = -100
        elif name == "topic":
            labels[place, 0] = torch.randint(3, (1,), generator=generator)
        elif name == "tags":
            values[place] = torch.randint(2, (4,), generator=generator).float()
        else:
            values[place, 0] = torch.randn(1, generator=generator)
    mask = torch.ones_like(ids)
    mask[::3, WIDTH - 3 :] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "task": task,
        "labels": labels,
        "label_values": values,
    }


CASES = {
    "multitask": Case(model, rows, lambda: Multitask({"score": 0.3, "words": 2.0})),
    "multitask uncertainty": Case(model, rows, UncertaintyWeighting),
    "multitask gradnorm": Case(model, rows, GradNorm),
    "multitask pcgrad": Case(model, rows, lambda: PCGrad(seed=3)),
}
