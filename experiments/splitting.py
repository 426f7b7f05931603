"""A data set dealt out: to the owner as test and public data, to workers as private data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
from pyarrow import parquet

from common.data.examples import Columns, Examples, join, read_examples, write_examples
from common.errors import DataError


@dataclass(frozen=True)
class SplitData:
    """The class names, and the files: the owner's test and public data, the workers' private data."""

    labels: tuple[str, ...]
    test: Path
    public: Path
    workers: tuple[Path, ...]


def split_indices(
    labels: Sequence[str], parts: int, concentration: float | None, random: numpy.random.Generator
) -> list[list[int]]:
    """Indices of `labels` in `parts` groups: by Dirichlet(`concentration`), or in equal shares by chance.

    Raises DataError when there are fewer labels than parts, or the concentration is not above 0.
    """
    if not 1 <= parts <= len(labels):
        raise DataError(f"{len(labels)} examples cannot be split into {parts} parts")
    if concentration is None:
        order = random.permutation(len(labels))
        return [sorted(piece.tolist()) for piece in numpy.array_split(order, parts)]
    if not 0 < concentration < math.inf:
        raise DataError(f"the Dirichlet concentration must be > 0 and finite, got {concentration:g}")
    return dirichlet_split(labels, parts, concentration, random)


def dirichlet_split(
    labels: Sequence[str], parts: int, concentration: float, random: numpy.random.Generator
) -> list[list[int]]:
    """Indices of `labels` in `parts` groups; each label's shares are drawn from a Dirichlet.

    Every group gets at least one index as long as there are enough. Source: Hsu et al. 2019.
    """
    groups: list[list[int]] = [[] for _ in range(parts)]
    for label in sorted(set(labels)):
        members = [i for i, other in enumerate(labels) if other == label]
        shares = random.dirichlet([concentration] * parts)
        ends = (numpy.cumsum(shares)[:-1] * len(members)).round().astype(int)
        for group, piece in zip(groups, numpy.split(numpy.array(members), ends), strict=True):
            group.extend(piece.tolist())
    for group in groups:
        if not group:
            group.append(max(groups, key=len).pop())
    return [sorted(group) for group in groups]


def require_classes(examples: Examples) -> None:
    """Raises DataError unless every example has one class, whose shares can be dealt out."""
    if examples.label_names is None:
        raise DataError(
            f"{examples.source}: shares of classes need one class for every example; split evenly"
        )


def draw_indices(
    there: int, sizes: Sequence[int], source: str, random: numpy.random.Generator
) -> list[list[int]]:
    """Indices below `there` in groups of `sizes`, then those left over. Raises DataError for too few."""
    if min(sizes) < 1 or sum(sizes) > there:
        wanted = " + ".join(str(size) for size in sizes)
        raise DataError(f"{source}: {wanted} examples are wanted, at least 1 of each; there are {there}")
    return [piece.tolist() for piece in numpy.split(random.permutation(there), numpy.cumsum(sizes))]


def drawn_parts(pool: Examples, sizes: Sequence[int], random: numpy.random.Generator) -> list[Examples]:
    """Examples of `pool` in groups of `sizes`, then those left over."""
    return [pool.take(indices) for indices in draw_indices(len(pool), sizes, pool.source, random)]


def held_out(data: SplitData, share: float, random: numpy.random.Generator) -> SplitData:
    """The same with a share of every worker's examples as validation.parquet in the test data's place.

    A worker keeps one example at least. What was drawn is gone from the workers' files, and the owner's
    test data are deleted: nothing that is chosen by these scores can have seen them. Raises DataError when
    nothing is left to validate on.
    """
    columns, parts = Columns(pair=_pair_column(data.test)), []
    for path in data.workers:
        examples = read_examples(path, columns)
        count = min(round(share * len(examples)), len(examples) - 1)
        if count < 1:
            continue
        chosen, others = draw_indices(len(examples), (count,), str(path), random)
        parts.append(examples.take(sorted(chosen)))
        write_examples(path, examples.take(sorted(others)))
    if not parts:
        raise DataError("the workers have too few examples to keep some of them for validation")
    validation = data.test.with_name("validation.parquet")
    write_examples(validation, join(parts[0].source, parts))
    data.test.unlink()
    return replace(data, test=validation)


def _pair_column(path: Path) -> str | None:
    """ "pair", where a file that `write_examples` wrote has that column."""
    return "pair" if "pair" in parquet.read_schema(path).names else None


def write_parts(
    folder: Path,
    labels: tuple[str, ...],
    test: Examples,
    public: Examples,
    private: Examples,
    workers: int,
    concentration: float | None,
    random: numpy.random.Generator,
) -> SplitData:
    """test.parquet, public.parquet without labels, and worker-1.parquet, … in `folder`.

    Raises DataError when classes are to be spread where each example has not one of them.
    """
    if concentration is not None:
        require_classes(private)
    names = private.label_names or [""] * len(private)
    files = tuple(folder / f"worker-{i}.parquet" for i in range(1, workers + 1))
    for path, part in zip(files, split_indices(names, workers, concentration, random), strict=True):
        write_examples(path, private.take(part))
    write_examples(folder / "test.parquet", test)
    write_examples(folder / "public.parquet", public.without_labels())
    return SplitData(labels, folder / "test.parquet", folder / "public.parquet", files)
