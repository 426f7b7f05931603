"""Multiple choice by likelihood: how likely a language model finds each choice behind the question.

Tokens are divided as lm-evaluation-harness divides them: question and choice are tokenised as one text, and
what comes behind the question's own tokens is the choice. Where a token would hold some of both, every choice
of the question is scored from before that token on, so that all are of the same stretch of text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn

from common.data.questions import Question
from common.data.rows import counted
from common.errors import DataError, ModelError
from common.listing import first_few
from common.model.passes import target_scores
from common.model.scores import OnProgress
from coordinator.scoring.figures import Figure, Scores, macro, mean
from coordinator.scoring.prompts import Divided, Prompter

# Of rows that are padded together: sorting within this many batches keeps padding small and memory bounded.
_BATCHES_SORTED = 16


@dataclass(frozen=True)
class Choice:
    """Tokens of a question with one of its choices; from `start` on they are the choice's."""

    tokens: tuple[int, ...]
    start: int

    @property
    def read(self) -> tuple[int, ...]:
        """What the model reads: of the last token nothing is asked."""
        return self.tokens[:-1]


@dataclass(frozen=True)
class Row:
    """What the model reads at once, and the choices that it answers for, by their positions in a list."""

    tokens: tuple[int, ...]
    choices: tuple[int, ...]


def choices_of(divided: Divided, first: int, most: int | None, place: str) -> tuple[list[Choice], bool]:
    """A question's choices as tokens, and whether the question was cut, from its beginning, so that the
    longest of them fits into `most` tokens. `first` stands before what has nothing before it.

    Raises DataError for a choice that leaves no token, or no room at all.
    """
    prompt, wholes = divided
    start = min(
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
        for whole in wholes
    )
    if start == 0:
        # The first token has none before it: what begins or ends a text stands there.
        wholes, start = [[first, *whole] for whole in wholes], 1
    if any(len(whole) <= start for whole in wholes):
        raise DataError(f"{place}: a choice leaves no token behind the question; write it out")
    longest = max(len(whole) for whole in wholes)
    over = 0 if most is None else longest - 1 - most
    if over > start - 1:
        raise DataError(
            f"{place}: its choices take {longest - start:,} tokens, but the model reads {most:,}; "
            "shorten them"
        )
    over = max(over, 0)
    return [Choice(tuple(whole[over:]), start - over) for whole in wholes], over > 0


def shared_rows(choices: Sequence[Choice]) -> list[Row]:
    """The fewest rows by which all are answered: a choice whose tokens another's row begins with needs none
    of its own, since no token sees those behind it. Of choices of one token each, a single row is left."""
    rows: list[tuple[tuple[int, ...], list[int]]] = []
    for i in sorted(range(len(choices)), key=lambda i: -len(choices[i].read)):
        read = choices[i].read
        for tokens, served in rows:
            if tokens[: len(read)] == read:
                served.append(i)
                break
        else:
            rows.append((read, [i]))
    return [Row(tokens, tuple(served)) for tokens, served in rows]


def log_likelihoods(
    model: nn.Module,
    choices: Sequence[Choice],
    rows: Sequence[Row],
    pad: int,
    batch_size: int,
    on_progress: OnProgress = lambda row, rows: None,
) -> list[float]:
    """Of every choice the sum over its tokens, in nats. Raises ModelError where they are no numbers."""
    found = [0.0] * len(choices)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
    done = 0
    for start in range(0, len(order), batch_size):
        on_progress(done, len(order))
        batch = [rows[i] for i in order[start : start + batch_size]]
        asked = [(row, i) for row, each in enumerate(batch) for i in each.choices]
        for i, value in zip((i for _, i in asked), _sums(model, choices, batch, asked, pad), strict=True):
            found[i] = value
        done += len(batch)
    on_progress(done, len(order))
    return found


def _sums(
    model: nn.Module,
    choices: Sequence[Choice],
    batch: Sequence[Row],
    asked: Sequence[tuple[int, int]],
    pad: int,
) -> list[float]:
    device = next(model.parameters()).device
    inputs = padded([row.tokens for row in batch], pad, device)
    rows, places, targets, owners = [], [], [], []
    for number, (row, i) in enumerate(asked):
        choice = choices[i]
        for place in range(choice.start, len(choice.tokens)):
            rows.append(row)
            places.append(place - 1)
            targets.append(choice.tokens[place])
            owners.append(number)
    at = (torch.tensor(rows, device=device), torch.tensor(places, device=device))
    values, _ = target_scores(model, inputs, at, torch.tensor(targets, device=device))
    require_finite(values)
    sums = torch.zeros(len(asked), dtype=torch.float64)
    sums.index_add_(0, torch.tensor(owners), values.double().cpu())
    return [float(each) for each in sums]


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Token rows as a model's inputs, int64 [B, T]; padding is at the end, where no token sees it."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def require_finite(values: Tensor) -> None:
    """Raises ModelError."""
    if not bool(values.isfinite().all()):
        raise ModelError("the model gives scores that are no numbers (NaN or infinite) on this data")


def score_questions(
    model: nn.Module,
    prompter: Prompter,
    source: str,
    questions: Sequence[Question],
    batch_size: int,
    on_progress: OnProgress = lambda question, questions: None,
) -> Scores:
    """Accuracy by the choices' log-likelihoods (acc), and by these over the choices' lengths in characters
    (acc_norm), both as lm-evaluation-harness defines them; of equal choices the first counts as said.

    Raises DataError, ModelError.
    """
    right: list[float] = []
    right_by_length: list[float] = []
    cut: list[str] = []
    for piece in _pieces(questions, batch_size * _BATCHES_SORTED):
        choices: list[Choice] = []
        rows: list[Row] = []
        of_question: list[range] = []
        divided = prompter.divided([(question.prompt, question.choices) for question in piece])
        for question, tokens in zip(piece, divided, strict=True):
            own, shortened = choices_of(tokens, prompter.first, prompter.most, question.place)
            if shortened:
                cut.append(question.place)
            begin = len(choices)
            rows += [Row(r.tokens, tuple(begin + i for i in r.choices)) for r in shared_rows(own)]
            choices += own
            of_question.append(range(begin, len(choices)))
        before = len(right)

        def told(done: int, whole: int, before: int = before, count: int = len(piece)) -> None:
            on_progress(before + done * count // max(whole, 1), len(questions))

        values = log_likelihoods(model, choices, rows, prompter.pad, batch_size, told)
        for question, own_range in zip(piece, of_question, strict=True):
            own_values = [values[i] for i in own_range]
            by_length = [v / len(c) for v, c in zip(own_values, question.choices, strict=True)]
            right.append(float(_largest(own_values) == question.answer))
            right_by_length.append(float(_largest(by_length) == question.answer))
    figures = {"acc": mean(right), "acc_norm": mean(right_by_length)}
    parts = _by_part(questions, right)
    if len(parts) > 1:
        figures["acc_macro"] = macro(list(parts.values()))
    notes = () if not cut else (f"{source}: {_told_cut(cut)}",)
    told_parts = {name: figure.value for name, figure in parts.items()} if len(parts) > 1 else None
    return Scores(source, "multiple choice", len(questions), figures, notes, told_parts)


def _told_cut(places: Sequence[str]) -> str:
    return (
        f"{counted(len(places), 'question')} longer than the model reads, the beginning of each left out: "
        f"{first_few(places)}"
    )


def _largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _by_part(questions: Sequence[Question], right: Sequence[float]) -> dict[str, Figure]:
    names = dict.fromkeys(question.part for question in questions)
    return {
        name: mean([r for q, r in zip(questions, right, strict=True) if q.part == name]) for name in names
    }


def _pieces(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    for start in range(0, len(questions), size):
        yield questions[start : start + size]
