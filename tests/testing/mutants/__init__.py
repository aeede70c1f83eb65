"""The gallery: methods wrong in one way, one file a family, {"method: what is wrong": Mutant}."""

from __future__ import annotations

from testing.mutants import balance, conflicts, evidence, generic, gram, plain, randomised, scales, value
from testing.mutants.kit import Mutant

GALLERY: dict[str, Mutant] = {
    **generic.MUTANTS,
    **plain.MUTANTS,
    **value.MUTANTS,
    **randomised.MUTANTS,
    **balance.MUTANTS,
    **gram.MUTANTS,
    **conflicts.MUTANTS,
    **scales.MUTANTS,
    **evidence.MUTANTS,
}
