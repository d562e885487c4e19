"""Perturbed embeddings: directions and random starts belong to an example, not to a batch."""

from hf_tfopt.objectives.adversarial import FGM, PGD, FreeLB
from hf_tfopt.objectives.language_modeling import LanguageModeling
from tests.invariants.cases import Case
from tests.invariants.cases.language_modeling import rows
from tests.models import tiny

CASES = {
    "fgm": Case(lambda: tiny("bert"), rows, lambda: FGM(LanguageModeling(), weight=0.5)),
    "pgd": Case(lambda: tiny("t5"), rows, lambda: PGD(LanguageModeling(), steps=2)),
    "freelb": Case(lambda: tiny("gpt2"), rows, lambda: FreeLB(LanguageModeling(), steps=3)),
}
