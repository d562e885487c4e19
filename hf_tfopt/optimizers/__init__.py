"""Optimizers: model -> parameter groups -> optimizer.

An entry takes groups such as `param_groups` gives, then `lr`, then its own options, and returns a
`torch.optim.Optimizer`.
"""

from hf_tfopt.registry import Lazy, Registry

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adafactor": Lazy("hf_tfopt.optimizers.adafactor:Adafactor"),
        "adam": Lazy("hf_tfopt.optimizers.from_torch:adam"),
        "adamw": Lazy("hf_tfopt.optimizers.from_torch:adamw"),
        "adamw_4bit": Lazy("hf_tfopt.optimizers.low_bits:adamw_4bit"),
        "adamw_8bit": Lazy("hf_tfopt.optimizers.low_bits:adamw_8bit"),
        "adamw_8bit_torchao": Lazy("hf_tfopt.optimizers.low_bits:adamw_8bit_torchao"),
        "lamb": Lazy("hf_tfopt.optimizers.lamb:Lamb"),
        "lion": Lazy("hf_tfopt.optimizers.lion:Lion"),
        "lion_8bit": Lazy("hf_tfopt.optimizers.low_bits:lion_8bit"),
        "muon": Lazy("hf_tfopt.optimizers.muon:Muon"),
        "schedule_free": Lazy("hf_tfopt.optimizers.schedule_free:schedule_free"),
        "sgd": Lazy("hf_tfopt.optimizers.from_torch:sgd"),
    },
)
