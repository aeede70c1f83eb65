"""The gallery: combiners wrong in one way, one file a family, {name: Mutant}."""

from __future__ import annotations

from testing.mutants import generic, plain
from testing.mutants.kit import Mutant

GALLERY: dict[str, Mutant] = {**generic.MUTANTS, **plain.MUTANTS}
