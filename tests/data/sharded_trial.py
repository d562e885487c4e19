"""Under torchrun: a collator tries out a model that is sharded. Prints "alike" if all do so alike.

As with FSDP2's `cpu_ram_efficient_loading`: at first only process 0 has the model's weights.
"""

import datetime
import os
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaForCausalLM

from hf_tfopt.data.causal_collator import CausalLMCollator
from hf_tfopt.data.packing import pack
from tests.data.test_causal_collator import ROW, documents, make_model
from tests.data.test_collators import make_tokenizer


def main() -> None:
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
    mesh = init_device_mesh("cpu", (2,))
    model = make_model("llama")
    collator = CausalLMCollator(make_tokenizer())
    nothing: Any = None
    args: Any = SimpleNamespace(n_gpu=0)
    with torch.device("meta"):
        empty = LlamaForCausalLM(model.config)
    first = model if dist.get_rank() == 0 else empty
    assert first.config is model.config
    collator.on_init_end(args, nothing, nothing, model=first)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    collator.on_train_begin(args, nothing, nothing, model=model)
    batch = collator(list(pack(documents(), ROW)))  # raises ValueError if documents were mixed
    model.train()(**batch).loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in gradients)
    if os.environ["RANK"] == "0":
        print("alike")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
