"""Table files (CSV, TSV, JSONL, Parquet) → columns of text or lists: what stands in the file."""

from collections.abc import Callable, Sequence
from pathlib import Path

from common.data.columnar import read_parquet
from common.data.conll import CONLL_ENDINGS
from common.data.delimited import read_csv, read_tsv
from common.data.json_rows import read_json
from common.data.rows import Table
from common.errors import DataError

_READERS: dict[str, Callable[[Path, Sequence[str]], Table]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
}
# In a folder; a .txt beside other files may be anything.
TABLE_ENDINGS = (*_READERS, *CONLL_ENDINGS)
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar", ".tar", ".tgz")


def read_table(path: Path, *columns: str) -> Table:
    """The named columns, as text or lists of texts.

    Raises DataError when the file is missing, empty, of no known kind or not readable, NoColumn when it
    lacks a column (naming those found).
    """
    ending = path.suffix.lower()
    if ending not in _READERS:
        kinds = ", ".join(TABLE_ENDINGS)
        if ending in _PACKED:
            raise DataError(f"{path} is packed; unpack it to {path.stem}")
        raise DataError(f"{path}: {ending or 'no ending'} is not a known kind; use {kinds}")
    table = _READERS[ending](path, columns)
    if not len(table):
        raise DataError(f"{path} is empty: it has columns but no rows")
    return table
