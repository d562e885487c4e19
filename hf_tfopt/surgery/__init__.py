"""Model -> the same model, edited; and the table of edits."""

from hf_tfopt.registry import Lazy, Registry

SURGERIES = Registry(
    "surgery",
    {
        "initialize_from_corpus": Lazy("hf_tfopt.surgery.initialization:initialize_from_corpus"),
        "student_from": Lazy("hf_tfopt.surgery.student:student_from"),
        "unpadded_attention": Lazy("hf_tfopt.surgery.attention:unpadded_attention"),
    },
)
