"""Rows of a Parquet file that somebody brings, as the same rows would read from JSON."""

import datetime
import decimal
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from backend.datasets.rowfile import MAX_COLUMNS
from backend.datasets.rows import Row
from backend.datasets.strictjson import MAX_DEPTH, BadFile, FileTooLarge, as_row, at_line, check_texts, integer

BATCH_ROWS = 256
MAX_BATCH_BYTES = 256 << 20


def _check_type(kind: pa.DataType, column: str, depth: int = 1) -> None:
    if depth > MAX_DEPTH:
        raise BadFile(f"The column is nested more than {MAX_DEPTH} levels deep.", line=1, field=column)
    if (
        pa.types.is_dictionary(kind)
        or pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
    ):
        _check_type(kind.value_type, column, depth + 1)
    elif pa.types.is_struct(kind):
        names = [kind.field(n).name for n in range(kind.num_fields)]
        if len(set(names)) != len(names):
            raise BadFile("Two fields of the column have the same name.", line=1, field=column)
        for n in range(kind.num_fields):
            _check_type(kind.field(n).type, column, depth + 1)
    elif not (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
        or pa.types.is_date(kind)
        or pa.types.is_timestamp(kind)
    ):
        raise BadFile(f"The column holds {kind}, which rows cannot hold.", line=1, field=column, remedy="Leave it out.")


def _plain(value: Any) -> Any:
    """A value as Parquet gave it → as JSON would."""
    if value is None or type(value) is str or type(value) is bool:
        return value
    if isinstance(value, int):
        return integer(str(value))
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadFile(f"{value} is no JSON.", remedy="Write null instead.")
        return value
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    raise BadFile(f"A value of the type {type(value).__name__} cannot be kept.")


class ParquetRows:
    """Rows of a Parquet file; the line of a row is its number, counted from 1."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        try:
            self._file = pq.ParquetFile(path, memory_map=False, pre_buffer=False)
            self._schema = self._file.schema_arrow
            metadata = self._file.metadata
        except (pa.ArrowException, OSError) as error:
            raise BadFile(
                f"This is no whole Parquet file: {_first_line(error)}.", line=1, remedy="Send it again."
            ) from None
        names = self._schema.names
        if len(names) > MAX_COLUMNS or metadata.num_columns > 4 * MAX_COLUMNS:
            raise FileTooLarge(f"There are {len(names):,} columns; at most {MAX_COLUMNS} are taken.", line=1)
        if len(set(names)) != len(names):
            raise BadFile("Two columns have the same name.", line=1)
        for field in self._schema:
            _check_type(field.type, field.name)
        if sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups)) > max_bytes:
            raise FileTooLarge(f"Unpacked, the file has more than {max_bytes:,} bytes.", remedy="Send it in parts.")
        self.total = metadata.num_rows
        self._row = 0

    def share(self) -> float:
        """How much of the file was read, from 0 to 1."""
        return self._row / self.total if self.total else 1.0

    def rows(self) -> Iterator[tuple[int, Row]]:
        """``(number, row)``; raises :class:`BadFile` with the row's number."""
        try:
            for batch in self._file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                if batch.nbytes > MAX_BATCH_BYTES:
                    raise FileTooLarge(f"{batch.num_rows} rows have {batch.nbytes:,} bytes.", line=self._row + 1)
                for raw in batch.to_pylist():
                    self._row += 1
                    row = {key: _plain(value) for key, value in raw.items() if value is not None}
                    check_texts(row)
                    yield self._row, as_row(row)
        except (BadFile, FileTooLarge) as error:
            raise at_line(error, self._row) from None
        except UnicodeDecodeError:
            raise BadFile("A text is no UTF-8.", line=self._row + 1) from None
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, pa.ArrowMemoryError):
                raise
            raise BadFile(f"The Parquet file is damaged: {_first_line(error)}.", line=self._row + 1) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
