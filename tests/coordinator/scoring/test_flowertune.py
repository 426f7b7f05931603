"""FlowerTune's nine tasks, from small copies in the hub's layout: prompts, answers, and what is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pytest
from pyarrow import parquet

from common.errors import DataError
from coordinator.scoring.flowertune import (
    BENCHMARKS,
    GROUPS,
    drawn,
    read_benchmark,
    said_decision,
    said_letter,
    said_sentiment,
)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def mmlu(root: Path) -> None:
    for name in ("mmlu-stem", "mmlu-social-sciences", "mmlu-humanities"):
        for i, subject in enumerate(BENCHMARKS[name].parts):
            row = {
                "input": f"Of {subject}",
                "A": "one",
                "B": "two",
                "C": "three",
                "D": "four",
                "target": "ABCD"[i % 4],
            }
            write(root / "lukaemon/mmlu" / subject / "test" / "0000.parquet", [row, row | {"input": "What?"}])


def medical(root: Path) -> None:
    write(
        root / "bigbio/pubmed_qa/pubmed_qa_labeled_fold0_source/test/0000.parquet",
        [
            {
                "QUESTION": "Does it help?",
                "CONTEXTS": ["It may.", "Or not."],
                "final_decision": "maybe",
                "YEAR": "1",
            }
        ],
    )
    write(
        root / "openlifescienceai/medmcqa/data/validation-00000-of-00001.parquet",
        [
            {
                "question": "Which is it",
                "opa": "a1",
                "opb": "b1",
                "opc": "c1",
                "opd": "d1",
                "cop": 2,
                "exp": None,
            }
        ],
    )
    options = [{"key": key, "value": f"{key} it is"} for key in "ABCD"]
    write(
        root / "bigbio/med_qa/med_qa_en_4options_source/test/0000.parquet",
        [{"question": "What now?", "options": options, "answer": "D it is", "answer_idx": "D"}],
    )


def finance(root: Path) -> None:
    write(
        root / "takala/financial_phrasebank/sentences_50agree/train/0000.parquet",
        [{"sentence": f"Sales {i} rose .", "label": i % 3} for i in range(10)],
    )
    for number, split in enumerate(("train", "validation", "test")):
        rows = [
            {"sentence": f"{split} {i}", "sentiment_score": score, "format": "post" if i else "headline"}
            for i, score in enumerate((-0.5, -0.1, 0.1))
        ]
        write(root / f"pauri32/fiqa-2018/data/{split}-00000-of-00001-a{number}.parquet", rows)
    tfns = root / "zeroshot/twitter-financial-news-sentiment" / "sent_valid.csv"
    tfns.parent.mkdir(parents=True)
    tfns.write_text('text,label\n"$A, down",0\n$B up,1\n$C,2\n')


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    for fill in (mmlu, medical, finance):
        fill(folder)
    return folder


def test_mmlus_prompts_have_the_leaderboards_parts(root: Path) -> None:
    first, second, *_ = read_benchmark(BENCHMARKS["mmlu-stem"], root)
    assert first.prompt == (
        "<|im_start|>question\nThis is a multiple choice question. Say which option is right.\n"
        "Question: Of abstract_algebra?\n\nOptions:\nA. one\nB. two\nC. three\nD. four\n"
        "The answer is:\n<|im_end|>\n<|im_start|>answer\n"
    )
    assert first.choices == ("A", "B", "C", "D") and first.answer == 0
    assert first.part == "abstract_algebra"
    # What ends like a question stays as it is.
    assert "Question: What?\n" in second.prompt


@pytest.mark.parametrize(("name", "subjects"), [("stem", 19), ("social-sciences", 12), ("humanities", 13)])
def test_mmlus_subjects_are_parts_of_three_fields(name: str, subjects: int, root: Path) -> None:
    found = read_benchmark(BENCHMARKS[f"mmlu-{name}"], root)
    assert len({question.part for question in found}) == subjects and len(found) == 2 * subjects


def test_medical_questions(root: Path) -> None:
    [pubmedqa] = read_benchmark(BENCHMARKS["pubmedqa"], root)
    assert pubmedqa.choices == ("yes", "no", "maybe") and pubmedqa.answer == 2
    assert "Say yes, no, or maybe.\nIt may.\nOr not.\nDoes it help?\nThe answer is:\n" in pubmedqa.prompt
    [medmcqa] = read_benchmark(BENCHMARKS["medmcqa"], root)
    assert medmcqa.answer == 2 and "Question: Which is it?\n\nOptions:\nA. a1\nB. b1\n" in medmcqa.prompt
    [medqa] = read_benchmark(BENCHMARKS["medqa"], root)
    assert medqa.answer == 3 and "D. D it is\n" in medqa.prompt and "options A to E" in medqa.prompt


def test_financial_sentences(root: Path) -> None:
    tfns = read_benchmark(BENCHMARKS["tfns"], root)
    assert [q.choices[q.answer] for q in tfns] == ["negative", "positive", "neutral"]
    assert tfns[0].prompt == (
        "Instruction: Say which sentiment this tweet expresses. The answer is one of negative, neutral, "
        "positive.\nInput: $A, down\nAnswer: "
    )
    fpb = read_benchmark(BENCHMARKS["fpb"], root)
    assert [q.answer for q in fpb] == [i % 3 for i in drawn(10)]
    assert "sentiment this news expresses" in fpb[0].prompt
    fiqa = read_benchmark(BENCHMARKS["fiqa"], root)
    # A score of -0.1 is neutral already, one of 0.1 no longer; posts are tweets.
    wanted = [("negative", "news"), ("neutral", "tweet"), ("positive", "tweet")]
    told = [(q.choices[q.answer], "tweet" if "this tweet" in q.prompt else "news") for q in fiqa]
    assert told == [wanted[i % 3] for i in drawn(9)]


def test_a_quarter_is_drawn_as_datasets_draws_it() -> None:
    # `Dataset.train_test_split(0.25, seed=42)`: the first of a permutation, the share rounded up.
    assert drawn(10) == numpy.random.default_rng(42).permutation(10)[:3].tolist() == [5, 6, 0]
    assert len(drawn(4846)) == 1212


@pytest.mark.parametrize(
    ("say", "answer", "taken"),
    [
        (said_letter, "B. two", "b"),
        (said_letter, " (c)", "c"),
        (said_letter, "The answer", "t"),
        (said_letter, "so\n## D\nmore", "d"),
        (said_letter, "", ""),
        (said_decision, "Yes.", "yes"),
        (said_decision, "yesno", "yes"),
        (said_decision, "maybe", "maybe"),
        (said_decision, "yes, it does", "yes, it does"),
        (said_sentiment, "Positive\nAnswer: negative", "positive"),
        (said_sentiment, "rather negative", "negative"),
        (said_sentiment, "POSITIVE", "neutral"),
        (said_sentiment, "Answer: positive", "neutral"),
    ],
)
def test_what_is_taken_from_an_answer(say: Callable[[str], str], answer: str, taken: str) -> None:
    assert say(answer) == taken


def test_groups_are_of_benchmarks() -> None:
    members = [name for group in GROUPS.values() for name in group]
    assert sorted(members) == sorted(BENCHMARKS) and len(members) == 9


def test_what_is_not_there_comes_with_the_command_that_gets_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mmlu-stem is neither in .* nor in the hub's cache") as caught:
        read_benchmark(BENCHMARKS["mmlu-stem"], tmp_path)
    assert (
        "run: hf download --repo-type dataset lukaemon/mmlu --revision refs/convert/parquet "
        f"--include '*/test/*.parquet' --local-dir {tmp_path}/lukaemon/mmlu" in str(caught.value)
    )


def test_a_copy_of_some_subjects_is_not_mmlu(tmp_path: Path) -> None:
    row = {"input": "x", "A": "1", "B": "2", "C": "3", "D": "4", "target": "E"}
    write(tmp_path / "mmlu/abstract_algebra/test/0000.parquet", [row])
    with pytest.raises(DataError, match="holds no anatomy/test; get all of its folders"):
        read_benchmark(BENCHMARKS["mmlu-stem"], tmp_path)


@pytest.mark.parametrize(
    ("name", "path", "row", "told"),
    [
        (
            "medmcqa",
            "medmcqa/data/validation-0.parquet",
            {"question": "q", "opa": "", "opb": "", "opc": "", "opd": "", "cop": -1},
            "row 1: the answer -1 is none of 4 options",
        ),
        (
            "pubmedqa",
            "pubmed_qa/pubmed_qa_labeled_fold0_source/test/0.parquet",
            {"QUESTION": "q", "CONTEXTS": [""], "final_decision": "perhaps"},
            "row 1: the answer 'perhaps' is none of yes, no, maybe",
        ),
        (
            "fpb",
            "financial_phrasebank/sentences_50agree/train/0.parquet",
            {"sentence": "s", "label": 3},
            "label 3 is none of 0 to 2",
        ),
        (
            "medqa",
            "med_qa/med_qa_en_4options_source/test/0.parquet",
            {"question": "q"},
            "has no column 'options'",
        ),
    ],
)
def test_data_that_are_not_as_published_are_refused(
    name: str, path: str, row: dict[str, Any], told: str, tmp_path: Path
) -> None:
    write(tmp_path / path, [row])
    with pytest.raises(DataError, match=told):
        read_benchmark(BENCHMARKS[name], tmp_path)
