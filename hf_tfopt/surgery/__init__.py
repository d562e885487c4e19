"""Model -> the same model, edited; and the table of edits."""

from hf_tfopt.registry import Lazy, Registry

SURGERIES = Registry(
    "surgery",
    {
        "freeze": Lazy("hf_tfopt.surgery.freezing:freeze"),
        "packed_classification": Lazy("hf_tfopt.surgery.packed_heads:packed_classification"),
        "initialize_from_corpus": Lazy("hf_tfopt.surgery.initialization:initialize_from_corpus"),
        "set_dropout": Lazy("hf_tfopt.surgery.dropout:set_dropout"),
        "student_from": Lazy("hf_tfopt.surgery.student:student_from"),
        "unpadded_attention": Lazy("hf_tfopt.surgery.attention:unpadded_attention"),
    },
)
