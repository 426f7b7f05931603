"""Exact match and ROUGE-L, against known values."""

import pytest

from coordinator.scoring.matching import exact_match, has_words, normalised, rouge_l


@pytest.mark.parametrize(
    ("told", "wanted", "same"),
    [
        ("The Eiffel Tower.", "eiffel tower", True),
        ("  a  cat\n", "Cat!", True),
        ("U.S.A.", "usa", True),
        ("theatre", "re", False),
        ("yes, it is", "yes", False),
        ("Zürich", "zürich", True),
        ("", "the", True),
    ],
)
def test_answers_are_compared_after_squads_normalisation(told: str, wanted: str, same: bool) -> None:
    assert exact_match(told, wanted) is same


def test_what_is_left_of_a_text() -> None:
    assert normalised("An  apple, the 2nd: A-B") == "apple 2nd ab"


# The first four are Lin's own (2004, section 3.2), with β = 1; the others are counted by hand.
@pytest.mark.parametrize(
    ("told", "wanted", "f"),
    [
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("the gunman police killed", "police killed the gunman", 2 / 4),
        ("police killed the gunman", "police killed the gunman", 1.0),
        ("Is your name John?", "My name is John", 2 / 4),
        ("a b c d e f", "a c e", 2 * 0.5 * 1.0 / 1.5),
        ("", "police", 0.0),
        ("nothing shared", "police", 0.0),
    ],
)
def test_rouge_l_has_its_known_values(told: str, wanted: str, f: float) -> None:
    assert rouge_l(told, wanted) == pytest.approx(f, abs=1e-6)


def test_words_are_of_latin_letters_and_digits() -> None:
    assert has_words("Ärger") and has_words("7") and not has_words("雨") and not has_words("?!")
