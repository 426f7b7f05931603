"""The nine tasks of FlowerTune's leaderboard, as its own evaluation asks them.

Data sets, splits, the order of a prompt's parts and what is taken from an answer are those of
benchmarks/flowertune-llm/evaluation in Flower's repository (github.com/adap/flower); the instructions are in
our own words. There the model generates, and its answer is read: that is the figure `answered_right` here.
The choices' likelihoods behind the same prompts are told beside it.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy

from common.data.hub_files import CONVERTED, HubFiles, hub_files
from common.data.questions import Question, json_or_parquet, text_of
from common.data.tables import read_table
from common.errors import DataError

_LETTERS = "ABCDE"
_STEM = (
    "abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science "
    "college_mathematics college_physics computer_security conceptual_physics electrical_engineering "
    "elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science "
    "high_school_mathematics high_school_physics high_school_statistics machine_learning"
)
_SOCIAL = (
    "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics "
    "high_school_microeconomics high_school_psychology human_sexuality professional_psychology "
    "public_relations security_studies sociology us_foreign_policy"
)
_HUMANITIES = (
    "formal_logic high_school_european_history high_school_us_history high_school_world_history "
    "international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory "
    "professional_law world_religions"
)
_MMLU = "This is a multiple choice question. Say which option is right."
_MEDICAL = (
    "This is a question of a medical examination. Use what is known of clinical practice and of the sciences "
    "behind it, as guidelines have it today."
)
_MEDMCQA = f"{_MEDICAL} Say which one of the options A to D is right."
_MEDQA = f"{_MEDICAL} Say which one of the options A to E is right."
_PUBMEDQA = "Judge by clinical knowledge whether the statement is right. Say yes, no, or maybe."
_DECISIONS = ("yes", "no", "maybe")
_SENTIMENTS = ("negative", "neutral", "positive")
# Where FiQA's scores become classes.
_NEUTRAL = 0.1
# The share of FPB and FiQA that is asked, and the seed that draws it.
_ASKED, _SEED = 0.25, 42

Rows = Sequence[tuple[str, Mapping[str, Any], str]]
"""Where each stands, its columns by name, and its part."""


@dataclass(frozen=True)
class Benchmark:
    """A task of the leaderboard."""

    name: str
    files: tuple[HubFiles, ...]
    columns: tuple[str, ...]
    question: Callable[[str, Mapping[str, Any], str], Question]
    said: Callable[[str], str]
    """What a generated answer comes to: one of the choices in lower case, or what is none of them."""
    tokens: int | None = None
    """The prompt and its answer together have so many at most; None: the answer has as many as the first
    choice."""
    parts: tuple[str, ...] = ()
    """Folders whose data are asked, as parts; () where there are none."""
    drawn: bool = False
    """Whether a quarter of the data is asked, drawn as `datasets` draws it."""


def read_benchmark(benchmark: Benchmark, root: Path | None) -> list[Question]:
    """Its questions, from a copy below `root` or the hub. Raises DataError."""
    rows: list[tuple[str, Mapping[str, Any], str]] = []
    for wanted in benchmark.files:
        found = hub_files(benchmark.name, wanted, root)
        if benchmark.parts:
            by_part = {path.parent.parent.name: path for path in found}
            if lacking := [part for part in benchmark.parts if part not in by_part]:
                folder = found[0].parent.parent.parent
                raise DataError(
                    f"{benchmark.name}: {folder} holds no {lacking[0]}/test; get all of its folders"
                )
            for part in benchmark.parts:
                rows += _rows(by_part[part], benchmark.columns, part)
        else:
            for path in found:
                rows += _rows(path, benchmark.columns, "")
    if benchmark.drawn:
        rows = [rows[i] for i in drawn(len(rows))]
    return [benchmark.question(*row) for row in rows]


def drawn(count: int) -> list[int]:
    """Positions of the test part of `datasets`' train_test_split with this share and seed: the first of a
    permutation by numpy's default generator."""
    order = numpy.random.default_rng(_SEED).permutation(count)
    return [int(i) for i in order[: math.ceil(_ASKED * count)]]


def _rows(path: Path, columns: Sequence[str], part: str) -> Rows:
    if path.suffix == ".csv":
        table = read_table(path, *columns)
        values, places = list(zip(*table.columns, strict=True)), table.places
    else:
        values, places = json_or_parquet(path, columns)
    return [(places[i], dict(zip(columns, row, strict=True)), part) for i, row in enumerate(values)]


# Prompts.


def _listed(place: str, instruction: str, question: Any, options: Sequence[Any]) -> str:
    """The question with its options by letter, as the model is asked."""
    asked = text_of(place, "question", question)
    if not asked.endswith(("?", ".")):
        asked += "?"
    lines = [f"{_LETTERS[i]}. {option}" for i, option in enumerate(options)]
    return _framed(f"{instruction}\nQuestion: {asked}\n\nOptions:\n" + "\n".join(lines))


def _framed(prompt: str) -> str:
    """Its own marks, whatever the model's template is."""
    return f"<|im_start|>question\n{prompt}\nThe answer is:\n<|im_end|>\n<|im_start|>answer\n"


def _lettered(place: str, prompt: str, count: int, answer: Any, part: str) -> Question:
    if not isinstance(answer, int) or not 0 <= answer < count:
        raise DataError(f"{place}: the answer {answer!r} is none of {count} options")
    return Question(place, prompt, tuple(_LETTERS[:count]), answer, part)


def _mmlu(place: str, row: Mapping[str, Any], part: str) -> Question:
    options = [row[letter] for letter in _LETTERS[:4]]
    prompt = _listed(place, _MMLU, row["input"], options)
    letters = {letter: i for i, letter in enumerate(_LETTERS)}
    return _lettered(place, prompt, 4, letters.get(row["target"], -1), part)


def _medmcqa(place: str, row: Mapping[str, Any], part: str) -> Question:
    options = [row[name] for name in ("opa", "opb", "opc", "opd")]
    return _lettered(place, _listed(place, _MEDMCQA, row["question"], options), 4, row["cop"], part)


def _medqa(place: str, row: Mapping[str, Any], part: str) -> Question:
    options = list(row["options"] or [])
    values = [option["value"] for option in options]
    answer = values.index(row["answer"]) if row["answer"] in values else -1
    return _lettered(place, _listed(place, _MEDQA, row["question"], values), len(options), answer, part)


def _pubmedqa(place: str, row: Mapping[str, Any], part: str) -> Question:
    context = "\n".join(row["CONTEXTS"] or [])
    asked = f"{_PUBMEDQA}\n{context}\n{text_of(place, 'QUESTION', row['QUESTION'])}"
    return Question(place, _framed(asked), _DECISIONS, _of(place, _DECISIONS, row["final_decision"]), part)


def _sentiment(place: str, sentence: Any, what: str, sentiment: str, part: str) -> Question:
    instruction = (
        f"Say which sentiment this {what} expresses. The answer is one of negative, neutral, positive."
    )
    prompt = f"Instruction: {instruction}\nInput: {text_of(place, 'sentence', sentence)}\nAnswer: "
    return Question(place, prompt, _SENTIMENTS, _SENTIMENTS.index(sentiment), part)


def _fpb(place: str, row: Mapping[str, Any], part: str) -> Question:
    return _sentiment(place, row["sentence"], "news", _class(place, _SENTIMENTS, row["label"]), part)


def _tfns(place: str, row: Mapping[str, Any], part: str) -> Question:
    names = ("negative", "positive", "neutral")
    return _sentiment(place, row["text"], "tweet", _class(place, names, row["label"]), part)


def _fiqa(place: str, row: Mapping[str, Any], part: str) -> Question:
    score = row["sentiment_score"]
    if not isinstance(score, int | float):
        raise DataError(f"{place}: 'sentiment_score' is no number")
    sentiment = "negative" if score < -_NEUTRAL else "neutral" if score < _NEUTRAL else "positive"
    what = "tweet" if row["format"] == "post" else "news"
    return _sentiment(place, row["sentence"], what, sentiment, part)


def _of(place: str, names: Sequence[str], name: Any) -> int:
    if name not in names:
        raise DataError(f"{place}: the answer {name!r} is none of {', '.join(names)}")
    return names.index(name)


def _class(place: str, names: Sequence[str], number: Any) -> str:
    """A CSV file has it as text."""
    if not str(number).isdecimal() or int(number) >= len(names):
        raise DataError(f"{place}: the label {number!r} is none of 0 to {len(names) - 1}")
    return names[int(number)]


# What is taken from an answer.


def _words(answer: str) -> str:
    """Of a part behind the mark ## its first line; letters and digits, blanks between."""
    if "\n##" in answer:
        answer = answer.split("\n##")[1].split("\n")[0]
    return re.sub("[^a-z0-9]+", " ", answer.lower()).strip()


def said_letter(answer: str) -> str:
    """The first letter of what was said."""
    return _words(answer)[:1]


def said_decision(answer: str) -> str:
    """Yes or no, of two in one word the first; or else all that was said."""
    words = _words(answer)
    for first in ("yes", "no"):
        for second in ("yes", "no"):
            words = words.replace(first + second, first)
    return words if words in ("yes", "no") else answer.lower()


def said_sentiment(answer: str) -> str:
    """Positive where that is in it, else negative where that is, else neutral; up to another "Answer: "."""
    own = answer.split("Answer: ")[0]
    for name in ("positive", "negative"):
        if name in own or name.capitalize() in own:
            return name
    return "neutral"


def _mmlu_of(name: str, subjects: str) -> Benchmark:
    files = (HubFiles("lukaemon/mmlu", "*/test/*.parquet", CONVERTED),)
    columns = ("input", *_LETTERS[:4], "target")
    return Benchmark(name, files, columns, _mmlu, said_letter, parts=tuple(subjects.split()))


_BENCHMARKS = (
    _mmlu_of("mmlu-stem", _STEM),
    _mmlu_of("mmlu-social-sciences", _SOCIAL),
    _mmlu_of("mmlu-humanities", _HUMANITIES),
    Benchmark(
        "pubmedqa",
        (HubFiles("bigbio/pubmed_qa", "pubmed_qa_labeled_fold0_source/test/*.parquet", CONVERTED),),
        ("QUESTION", "CONTEXTS", "final_decision"),
        _pubmedqa,
        said_decision,
    ),
    Benchmark(
        "medmcqa",
        (HubFiles("openlifescienceai/medmcqa", "data/validation-*.parquet"),),
        ("question", "opa", "opb", "opc", "opd", "cop"),
        _medmcqa,
        said_letter,
    ),
    Benchmark(
        "medqa",
        (HubFiles("bigbio/med_qa", "med_qa_en_4options_source/test/*.parquet", CONVERTED),),
        ("question", "options", "answer"),
        _medqa,
        said_letter,
    ),
    Benchmark(
        "fpb",
        (HubFiles("takala/financial_phrasebank", "sentences_50agree/train/*.parquet", CONVERTED),),
        ("sentence", "label"),
        _fpb,
        said_sentiment,
        tokens=512,
        drawn=True,
    ),
    Benchmark(
        "fiqa",
        tuple(
            HubFiles("pauri32/fiqa-2018", f"data/{split}-*.parquet")
            for split in ("train", "validation", "test")
        ),
        ("sentence", "sentiment_score", "format"),
        _fiqa,
        said_sentiment,
        tokens=512,
        drawn=True,
    ),
    Benchmark(
        "tfns",
        (HubFiles("zeroshot/twitter-financial-news-sentiment", "sent_valid.csv"),),
        ("text", "label"),
        _tfns,
        said_sentiment,
        tokens=512,
    ),
)
BENCHMARKS = MappingProxyType({benchmark.name: benchmark for benchmark in _BENCHMARKS})
# What the leaderboard tells the mean of.
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "general-nlp": ("mmlu-stem", "mmlu-social-sciences", "mmlu-humanities"),
        "medical": ("pubmedqa", "medmcqa", "medqa"),
        "finance": ("fpb", "fiqa", "tfns"),
    }
)
