"""Whether an answer is the one that was wanted: exact match after SQuAD's normalisation, and ROUGE-L."""

import re
import string

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# ROUGE's words are runs of these.
_WORD = re.compile(r"[a-z0-9]")


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, without the articles a, an and the, blanks as one: as the
    evaluation of SQuAD has it (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(told: str, wanted: str) -> bool:
    """Whether both are one text once normalised."""
    return normalised(told) == normalised(wanted)


def has_words(text: str) -> bool:
    """Whether ROUGE sees a word in it: it knows the letters a to z and digits."""
    return _WORD.search(text.lower()) is not None


def rouge_l(told: str, wanted: str) -> float:
    """ROUGE-L's F measure, 0 to 1 (Lin 2004): the longest common subsequence of words, without stemming, as
    Google's rouge-score has it; torchmetrics computes it."""
    # Seconds to import.
    from torchmetrics.functional.text.rouge import rouge_score

    return float(rouge_score(told, wanted, rouge_keys="rougeL")["rougeL_fmeasure"])
