"""The mistakes that `make mutants` seeds still fit the code."""

from mutants import MUTANTS, misplaced


def test_each_mistake_has_its_place_in_the_code():
    assert [mutant.old for mutant in misplaced()] == [], "adapt tests/mutants.py to the new code"
    assert len(set(MUTANTS)) == len(MUTANTS) >= 30
    assert all(mutant.old != mutant.new for mutant in MUTANTS)
