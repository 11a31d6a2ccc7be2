"""Rows on disk: one zstd Parquet file with TRL's columns under their own types, written and read in bounded pieces.

Row groups hold at most 2,000 rows or 8 MiB, so any page of a million rows is one small read.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from backend.datasets.rows import COLUMNS, TEXTS, Row, RowType
from backend.datasets.statistics import Statistics
from backend.errors import Invalid, TooLarge

GROUP_ROWS = 2_000
GROUP_BYTES = 8 << 20
MAX_COLUMNS = 256
MAX_ROW_BYTES = 2_000_000

CONVERSATION = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
TYPES: dict[str, pa.DataType] = {
    "text": pa.string(),
    "conversation": CONVERSATION,
    "texts": pa.list_(pa.string()),
    "booleans": pa.list_(pa.bool_()),
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "json": pa.string(),
}


class BadRow(Invalid):
    """A row does not fit."""


class RowTooLarge(TooLarge):
    """A row is larger than the studio takes."""


class Written(NamedTuple):
    """What was written: everything a version records of its rows."""

    path: Path
    rows: int
    content_sha256: str
    conversational: bool
    columns: dict[str, str]
    statistics: dict[str, Any]


def canonical(row: Row) -> bytes:
    """The one JSON text of a row: sorted keys, no spaces, absent instead of null. The content hash is taken over these."""
    return orjson.dumps({key: value for key, value in row.items() if value is not None}, option=orjson.OPT_SORT_KEYS)


def _has_no_json(value: Any) -> bool:
    """Whether a NaN or an infinity hides in *value*."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_has_no_json, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_no_json, value))


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer" if -(2**63) <= value < 2**63 else "json"
    if isinstance(value, float):
        return "number"
    return "text" if isinstance(value, str) else "json"


def _kind_of_ours(column: str, value: Any) -> str:
    """The kind of a value in one of TRL's columns, whose shape has been checked."""
    if type(value) is not list:
        return _kind(value)
    return "conversation" if column in TEXTS else ("texts" if column == "completions" else "booleans")


class RowWriter:
    """Writes checked rows to a Parquet file at *path*, hashing and counting them on the way.

    A column that is not TRL's takes the type of its values; as soon as they disagree it becomes JSON text, and what
    was written is rewritten, so that the file reads as the rows came.
    """

    def __init__(self, path: Path, row_type: RowType) -> None:
        self._path, self._row_type = path, row_type
        self._known: dict[str, str] = {}
        self._conversational: bool | None = None
        self._statistics = Statistics(row_type)
        self._digest = hashlib.sha256()
        self._buffer: list[Row] = []
        self._buffered_bytes = 0
        self._writer: pq.ParquetWriter | None = None
        self.rows = 0

    def add(self, row: Row) -> None:
        """Take one row. Raises :class:`BadRow` or :class:`RowTooLarge` and keeps what it had."""
        try:
            line = canonical(row)
        except TypeError as error:
            if "surrogate" in str(error):
                raise BadRow("A text holds half of a surrogate pair, which is no character.") from None
            raise BadRow(f"A value cannot be kept as JSON: {error}.") from None
        if len(line) > MAX_ROW_BYTES:
            raise RowTooLarge(f"The row has {len(line):,} bytes; at most {MAX_ROW_BYTES:,} are taken.")
        if b"\\u0000" in line and "\\u0000" in line.decode().replace("\\\\", ""):
            raise BadRow("A text holds U+0000, which no database keeps.", remedy="Remove it.")
        row_type_columns = COLUMNS[self._row_type]
        conversational = any(type(row.get(column)) is list for column in row_type_columns if column in TEXTS)
        if self._conversational is None:
            self._conversational = conversational
        elif conversational is not self._conversational:
            was, now = ("conversations", "plain text") if self._conversational else ("plain text", "conversations")
            raise BadRow(f"The rows before hold {was}, this one {now}.", remedy="Import them as two datasets.")
        for column, value in row.items():
            if value is None:
                continue
            if column in row_type_columns:
                kind = _kind_of_ours(column, value)
            else:
                if type(value) is not str and type(value) is not int and _has_no_json(value):
                    raise BadRow("NaN and infinity are not taken.", field=column)
                kind = _kind(value)
            known = self._known.get(column)
            if known is None or (kind != known and known != "json"):
                self._learn(column, kind if known is None else "json")
        self._digest.update(line)
        self._digest.update(b"\n")
        self._statistics.add(row)
        self._buffer.append(row)
        self._buffered_bytes += len(line)
        self.rows += 1
        if len(self._buffer) >= GROUP_ROWS or self._buffered_bytes >= GROUP_BYTES:
            self._flush()

    def _learn(self, column: str, kind: str) -> None:
        if column not in self._known and len(self._known) >= MAX_COLUMNS:
            raise RowTooLarge(f"There are more than {MAX_COLUMNS} columns.")
        before = dict(self._known)
        self._known[column] = kind
        if self._writer is None:
            return
        # rows are on disk under the old types: copy them over, group by group
        self._writer.close()
        old = self._path.with_suffix(".old")
        self._path.replace(old)
        self._writer = self._open()
        with pq.ParquetFile(old) as file:
            for group in range(file.num_row_groups):
                self._writer.write_table(
                    self._table(_rows_of(file.read_row_group(group), before)), row_group_size=GROUP_ROWS
                )
        old.unlink()

    def _schema(self) -> pa.Schema:
        order = [
            *(c for c in COLUMNS[self._row_type] if c in self._known),
            *(c for c in self._known if c not in COLUMNS[self._row_type]),
        ]
        # the metadata tells JSON text from text
        return pa.schema([pa.field(c, TYPES[self._known[c]], metadata={"kind": self._known[c]}) for c in order])

    def _open(self) -> pq.ParquetWriter:
        return pq.ParquetWriter(
            self._path, self._schema(), compression="zstd", use_dictionary=False, write_statistics=False
        )

    def _table(self, rows: list[Row]) -> pa.Table:
        schema = self._schema()
        arrays = []
        for field in schema:
            values = [row.get(field.name) for row in rows]
            if self._known[field.name] == "json":
                values = [None if v is None else orjson.dumps(v, option=orjson.OPT_SORT_KEYS).decode() for v in values]
            arrays.append(pa.array(values, field.type))
        return pa.Table.from_arrays(arrays, schema=schema)

    def _flush(self) -> None:
        if not self._buffer:
            return
        if self._writer is None:
            self._writer = self._open()
        self._writer.write_table(self._table(self._buffer), row_group_size=GROUP_ROWS)
        self._buffer.clear()
        self._buffered_bytes = 0

    def close(self) -> Written:
        """Finish the file. Raises :class:`BadRow` if there was no row at all."""
        if not self.rows:
            raise BadRow("There is no row.", line=1, remedy="A version has at least one row.")
        self._flush()
        assert self._writer is not None
        schema = self._schema()
        self._writer.close()
        return Written(
            self._path,
            self.rows,
            self._digest.hexdigest(),
            bool(self._conversational),
            {field.name: self._known[field.name] for field in schema},
            self._statistics.finish(),
        )


def _rows_of(table: pa.Table, kinds: dict[str, str] | None = None) -> list[Row]:
    rows: list[Row] = table.to_pylist()
    as_json = [
        field.name
        for field in table.schema
        if (kinds or {}).get(field.name, (field.metadata or {}).get(b"kind", b"").decode()) == "json"
    ]
    for row in rows:
        for column in as_json:
            if row[column] is not None:
                row[column] = orjson.loads(row[column])
        for column in [column for column, value in row.items() if value is None]:
            del row[column]
    return rows


class RowReader:
    """Reads a file that :class:`RowWriter` wrote, from any position, one small group at a time."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, memory_map=False)
        metadata = self._file.metadata
        self._starts = [0]
        for group in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)

    def __enter__(self) -> "RowReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._starts[-1]

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Row]]:
        """``(position, row)`` from *start* up to but without *stop*."""
        stop = len(self) if stop is None else min(stop, len(self))
        while start < stop:
            group = bisect_right(self._starts, start) - 1
            end = min(stop, self._starts[group + 1])
            offset = start - self._starts[group]
            table = self._file.read_row_group(group).slice(offset, end - start)
            yield from enumerate(_rows_of(table), start)
            start = end

    def lines(self) -> Iterator[bytes]:
        """Every row as one line of JSON, columns in their order."""
        for _, row in self.rows():
            yield orjson.dumps(row) + b"\n"
