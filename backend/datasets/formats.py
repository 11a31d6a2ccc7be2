"""Files that people bring: JSON lines, JSON arrays, CSV (each plain or gzipped) and Parquet, told apart by their content.

Everything streams: no buffer holds more than one line of at most 2 MB and one chunk. Every way in which a file can be
broken or hostile is an error with its line, never a traceback, and nothing is silently changed: no NaN, no doubled key
of which one would win, no integer that would become a float.
"""

import csv
import datetime
import decimal
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from backend.datasets.rowfile import MAX_COLUMNS, MAX_ROW_BYTES
from backend.datasets.rows import Row
from backend.errors import Invalid, TooLarge

CHUNK = 1 << 18
MAX_DEPTH = 32
MAX_RATIO = 100
RATIO_FREE_BYTES = 16 << 20
"""Small files may be as repetitive as they like."""
SNIFF_BYTES = 1 << 16
BATCH_ROWS = 256
MAX_BATCH_BYTES = 256 << 20

Kind = Literal["json_lines", "json_array", "csv", "parquet"]
NAMES: dict[str, str] = {"json_lines": "JSON lines", "json_array": "JSON array", "csv": "CSV", "parquet": "Parquet"}


class BadFile(Invalid):
    """This file cannot be read."""


class FileTooLarge(TooLarge):
    """This file is larger than the studio takes."""


_MAGIC: list[tuple[bytes, str]] = [
    (b"PK\x03\x04", "a zip archive"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ\x00", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"ARROW1", "an Arrow file"),
    (b"%PDF", "a PDF"),
]


class Unpacked(io.RawIOBase):
    """The bytes of a file, unzipped if it is gzipped, as long as they are not absurdly many."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._raw = path.open("rb")
        self._size = path.stat().st_size
        self.compressed = self._raw.read(2) == b"\x1f\x8b"
        self._raw.seek(0)
        self._stream: gzip.GzipFile | BinaryIO = gzip.GzipFile(fileobj=self._raw) if self.compressed else self._raw
        self._max_bytes = max_bytes
        self._read = 0

    def read(self, size: int = CHUNK) -> bytes:
        """Up to *size* bytes; raises :class:`BadFile` or :class:`FileTooLarge`."""
        try:
            data = self._stream.read(size)
        except (OSError, EOFError, zlib.error):
            raise BadFile("The gzip file is damaged or cut off.", remedy="Send it again.") from None
        self._read += len(data)
        if self._read > self._max_bytes:
            raise FileTooLarge(
                f"Unpacked, the file has more than {self._max_bytes:,} bytes.", remedy="Send it in parts."
            )
        if self.compressed and self._read > max(RATIO_FREE_BYTES, MAX_RATIO * self._size):
            raise FileTooLarge(
                f"The file unpacks to more than {MAX_RATIO} times its size.",
                remedy="Send it unpacked if it is meant so.",
            )
        return data

    def share(self) -> float:
        """How much of the file was read, from 0 to 1."""
        return self._raw.tell() / self._size if self._size else 1.0

    def close(self) -> None:
        """Close the file."""
        self._raw.close()
        super().close()


def lines(stream: Unpacked) -> Iterator[tuple[int, bytes]]:
    """``(number, line)`` with its end, which may be LF, CRLF or CR, mixed as they come; without the UTF-8 mark in front."""
    carry, number, first = b"", 0, True
    while True:
        chunk = stream.read(CHUNK)
        data = carry + chunk
        if first:
            data = data.removeprefix(b"\xef\xbb\xbf")
            first = False
        pieces = data.splitlines(keepends=True)
        # a CR at the end of a chunk may be half of a CRLF
        carry = pieces.pop() if chunk and pieces and not pieces[-1].endswith(b"\n") else b""
        for piece in pieces:
            number += 1
            if len(piece) > MAX_ROW_BYTES:
                break
            yield number, piece
        else:
            if len(carry) > MAX_ROW_BYTES:
                number += 1
            elif chunk:
                continue
            else:
                return
        raise FileTooLarge(
            f"Line {number:,} is longer than {MAX_ROW_BYTES:,} bytes.",
            line=number,
            remedy="One row stands on one line.",
        )


# --- JSON --------------------------------------------------------------------------------------------------------

_KEY = re.compile(rb'"\s*:')


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        doubled = next(key for n, (key, _) in enumerate(pairs) if key in dict(pairs[:n]))
        raise BadFile(
            f"The key “{doubled[:80]}” stands twice in one object.", field=doubled[:80], remedy="Keep one of them."
        )
    return found


def _integer(digits: str) -> int:
    value = int(digits) if len(digits) < 22 else 2**64
    if not -(2**63) <= value < 2**63:
        raise BadFile(f"The integer {digits[:24]}… has more than 64 bits.", remedy="Write it as text.")
    return value


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise BadFile(f"The number {digits[:24]} is infinite.", remedy="Write a finite number, or nothing.")
    return value


def _constant(word: str) -> float:
    raise BadFile(f"{word} is no JSON.", remedy="Write null, or leave the key out.")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=_integer, parse_float=_float, parse_constant=_constant)


_FAR = float(2**63)
_SUSPECT = -(10**9)


def _keys(value: Any, depth: int = 1) -> int:
    """How many keys all objects in *value* have, negative if a number may once have been a long integer.

    Raises :class:`BadFile` for what is nested too deeply.
    """
    if depth > MAX_DEPTH:
        raise BadFile(f"The row is nested more than {MAX_DEPTH} levels deep.", remedy="Flatten it.")
    keys = 0
    if type(value) is dict:
        keys, inside = len(value), iter(value.values())
    else:
        inside = iter(value if type(value) is list else ())
    for inner in inside:
        kind = type(inner)
        if kind is str:
            continue
        if kind is dict or kind is list:
            keys += _keys(inner, depth + 1)
        elif (kind is float or kind is int) and not -_FAR < inner < _FAR:
            keys += _SUSPECT
    return keys


def check_texts(value: Any) -> None:
    """Raise :class:`BadFile` for U+0000 and halves of surrogate pairs in any text of *value*."""
    if isinstance(value, str):
        if "\0" in value:
            raise BadFile("A text holds U+0000, which no database keeps.", remedy="Remove it.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadFile(
                "A text holds half of a surrogate pair, which is no character.", remedy="Remove it."
            ) from None
    elif isinstance(value, dict):
        for key, inner in value.items():
            check_texts(key)
            check_texts(inner)
    elif isinstance(value, list):
        for inner in value:
            check_texts(inner)


def parse(text: bytes) -> Any:
    """The JSON value in *text*, strictly. Raises :class:`BadFile` without a line."""
    if b"\0" in text:
        raise BadFile("There is a NUL byte.", remedy="Save the file as UTF-8 text.")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _why(text, error) from None
    # orjson lets the last of two equal keys win: every key ends in a quote and a colon, so if there are no more of
    # those than keys, none stands twice. It also makes floats of long integers. Both are rare, and then read slowly
    if len(_KEY.findall(text)) != _keys(value):
        value = _slowly(text.decode())
    if b"\\u0000" in text:
        check_texts(value)
    return value


def _slowly(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise BadFile(f"The row is nested more than {MAX_DEPTH} levels deep.", remedy="Flatten it.") from None
    except json.JSONDecodeError as error:
        raise BadFile(f"This is no JSON: {error.msg} at character {error.pos + 1}.") from None


def _why(text: bytes, error: orjson.JSONDecodeError) -> BadFile:
    """The sentence for what orjson refused."""
    try:
        decoded = text.decode()
    except UnicodeDecodeError as wrong:
        return _not_utf8(wrong)
    try:
        check_texts(_slowly(decoded))
    except BadFile as found:
        return found
    if "recursion" in str(error).lower():
        return BadFile(f"The row is nested more than {MAX_DEPTH} levels deep.", remedy="Flatten it.")
    return BadFile(f"This is no JSON: {error.msg}.")


def _not_utf8(error: UnicodeDecodeError) -> BadFile:
    return BadFile(
        f"This is no UTF-8: byte 0x{error.object[error.start]:02X} in place {error.start + 1} of the line.",
        remedy="Save the file as UTF-8.",
    )


def _row(value: Any) -> Row:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
        raise BadFile(f"A row must be an object with named columns, this is {kind}.", remedy='Write {"prompt": …}.')
    if not value:
        raise BadFile("The row has no columns.")
    if len(value) > MAX_COLUMNS:
        raise FileTooLarge(
            f"The row has {len(value):,} columns; at most {MAX_COLUMNS} are taken.", remedy="Leave some out."
        )
    return value


def json_lines(stream: Unpacked) -> Iterator[tuple[int, Row]]:
    """One object per line."""
    for number, line in lines(stream):
        text = line.strip()
        if not text:
            continue
        try:
            yield number, _row(parse(text))
        except (BadFile, FileTooLarge) as error:
            if number == 1 and text == b"{":
                error.remedy = "Each row stands on one line: {…} newline {…}. Or send a list: [{…}, {…}]."
            raise _at(error, number) from None


def json_array(stream: Unpacked) -> Iterator[tuple[int, Row]]:
    """The objects of one list, decoded one by one."""
    read = _decoded(stream)
    buffer, line, at, started, done = "", 1, 0, False, False
    expects_comma = expects_row = False
    while True:
        at, line = _skip(buffer, at, line)
        if at >= len(buffer):
            buffer, at = read(), 0
            if not buffer:
                break
            continue
        sign = buffer[at]
        if done:
            raise BadFile("Something follows the end of the list.", line=line)
        if not started:
            started, at = True, at + 1
        elif sign == "]" and not expects_row:
            done, at = True, at + 1
        elif sign == ",":
            if not expects_comma:
                raise BadFile("There is a comma without a row before it.", line=line)
            expects_comma, expects_row, at = False, True, at + 1
        elif expects_comma:
            raise BadFile("There is no comma between two rows.", line=line)
        elif sign != "{":
            raise BadFile("A row must be an object with named columns.", line=line, remedy='Write {"prompt": …}.')
        else:
            while True:
                try:
                    value, end = _DECODER.raw_decode(buffer, at)
                    break
                except json.JSONDecodeError as error:
                    if len(buffer) - at > MAX_ROW_BYTES:
                        wrong: BadFile | FileTooLarge = FileTooLarge(f"The row is longer than {MAX_ROW_BYTES:,} bytes.")
                        raise _at(wrong, line) from None
                    more = read()
                    if not more:
                        place = line + buffer.count("\n", at, error.pos)
                        raise BadFile(f"This is no JSON: {error.msg}.", line=place) from None
                    buffer, at = buffer[at:] + more, 0
                except RecursionError:
                    raise BadFile(f"The row is nested more than {MAX_DEPTH} levels deep.", line=line) from None
                except BadFile as error:
                    raise _at(error, line) from None
            try:
                _keys(value)
                check_texts(value)
                yield line, _row(value)
            except (BadFile, FileTooLarge) as error:
                raise _at(error, line) from None
            line += buffer.count("\n", at, end)
            at, expects_comma, expects_row = end, True, False
    if not done:
        raise BadFile("The list has no end: the file is cut off.", line=line, remedy="Send it again.")


_BLANK = re.compile(r"[ \t\r\n]*")


def _skip(buffer: str, at: int, line: int) -> tuple[int, int]:
    end = _BLANK.match(buffer, at).end()  # type: ignore[union-attr]  # the pattern matches nothing, too
    return end, line + buffer.count("\n", at, end)


def _decoded(stream: Unpacked) -> Callable[[], str]:
    """A reader of text chunks; raises :class:`BadFile` at bytes that are no UTF-8."""
    import codecs

    decoder, seen, first = codecs.getincrementaldecoder("utf-8")(), 1, True

    def read() -> str:
        nonlocal seen, first
        while True:
            chunk = stream.read(CHUNK)
            if b"\0" in chunk:
                place = seen + chunk.count(b"\n", 0, chunk.index(b"\0"))
                raise BadFile("There is a NUL byte.", line=place, remedy="Save the file as UTF-8 text.")
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise BadFile(
                    "This is no UTF-8.",
                    line=seen + error.object.count(b"\n", 0, error.start),
                    remedy="Save the file as UTF-8.",
                ) from None
            if first:
                text, first = text.removeprefix("\ufeff"), False
            seen += chunk.count(b"\n")
            if text or not chunk:
                return text

    return read


# --- CSV ---------------------------------------------------------------------------------------------------------

csv.field_size_limit(MAX_ROW_BYTES)


def sniff_delimiter(sample: str) -> str:
    """The delimiter by which the first records fall into the most columns, all of the same number; a comma if none does."""
    best, most = ",", 1
    for delimiter in ",\t;|":
        widths = []
        try:
            for record in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter, strict=True):
                widths.append(len(record))
                if len(widths) > 20:
                    break
        except csv.Error:
            pass  # a sample may end inside a quoted field
        widths = [width for width in widths if width]
        # the last record of the sample may be cut
        if widths and widths[0] > most and all(width == widths[0] for width in widths[: max(1, len(widths) - 1)]):
            best, most = delimiter, widths[0]
    return best


class _Records:
    """Text lines for ``csv.reader``, which knows no bound: counts them and stops a record that never ends."""

    def __init__(self, stream: Unpacked) -> None:
        self._lines = lines(stream)
        self.number = 0
        self.record_bytes = 0

    def __iter__(self) -> Iterator[str]:
        for number, line in self._lines:
            self.number = number
            self.record_bytes += len(line)
            if self.record_bytes > MAX_ROW_BYTES:
                raise FileTooLarge(
                    f"The row is longer than {MAX_ROW_BYTES:,} bytes.", remedy="A quotation mark may have no partner."
                )
            if b"\0" in line:
                raise _at(BadFile("There is a NUL byte.", remedy="Save the file as UTF-8 text."), self.number)
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise _at(_not_utf8(error), self.number) from None


def csv_rows(stream: Unpacked, delimiter: str) -> Iterator[tuple[int, Row]]:
    """One record per row, named by the header; every value is text. A row's line is where it begins."""
    records = _Records(stream)
    reader = csv.reader(iter(records), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    begins = 1
    try:
        for record in reader:
            if record:
                if header is None:
                    header = _header(record)
                elif len(record) != len(header):
                    raise BadFile(
                        f"The row has {len(record)} values, the header names {len(header)} columns.",
                        remedy="Put values with the delimiter or a newline in quotation marks.",
                    )
                else:
                    yield begins, dict(zip(header, record, strict=True))
            records.record_bytes = 0
            begins = records.number + 1
    except csv.Error as error:
        raise BadFile(f"This is no CSV: {error}.", line=begins, remedy="Check the quotation marks.") from None
    except (BadFile, FileTooLarge) as error:
        raise _at(error, begins) from None


def _header(names: list[str]) -> list[str]:
    if len(names) > MAX_COLUMNS:
        raise FileTooLarge(
            f"There are {len(names):,} columns; at most {MAX_COLUMNS} are taken.", remedy="Leave some out."
        )
    names = [name.strip() for name in names]
    for n, name in enumerate(names, 1):
        if not name:
            raise BadFile(f"Column {n} has no name in the header.", remedy="The first line names the columns.")
        if name in names[: n - 1]:
            raise BadFile(f"Two columns are called “{name[:80]}”.", field=name[:80], remedy="Rename one.")
    return names


# --- Parquet -----------------------------------------------------------------------------------------------------


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
        return _integer(str(value))
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
                    yield self._row, _row(row)
        except (BadFile, FileTooLarge) as error:
            raise _at(error, self._row) from None
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


# --- all of them -------------------------------------------------------------------------------------------------


def _at(error: BadFile | FileTooLarge, line: int) -> BadFile | FileTooLarge:
    error.fields.setdefault("line", line)
    return error


class Source(NamedTuple):
    """An opened file: what it is, its rows with their lines, and how much of it was read."""

    kind: Kind
    compressed: bool
    delimiter: str | None
    rows: Iterator[tuple[int, Row]]
    share: Callable[[], float]
    close: Callable[[], None]


def open_source(path: Path, max_bytes: int) -> Source:
    """What the file at *path* is, by its content, ready to be read. Raises :class:`BadFile` or :class:`FileTooLarge`."""
    with path.open("rb") as file:
        head = file.read(16)
    if head[:4] == b"PAR1":
        parquet = ParquetRows(path, max_bytes)
        return Source("parquet", False, None, parquet.rows(), parquet.share, parquet.close)
    sniffed = Unpacked(path, max_bytes)
    with sniffed:
        sample = sniffed.read(SNIFF_BYTES)
    if not sample.strip(b"\xef\xbb\xbf \t\r\n"):
        raise BadFile("The file is empty.", line=1, remedy="Choose another one.")
    for magic, what in _MAGIC:
        if sample.startswith(magic):
            raise BadFile(
                f"The file is {what}.", line=1, remedy="Send JSON lines, CSV (each may be gzipped) or Parquet."
            )
    if sample.startswith(b"PAR1"):
        raise BadFile("This is gzipped Parquet.", line=1, remedy="Send it as it is: Parquet is compressed inside.")
    if sample.startswith((b"\xff\xfe", b"\xfe\xff")) or sample[:4:2] == b"\0\0" or sample[1:5:2] == b"\0\0":
        raise BadFile("The file is UTF-16.", line=1, remedy="Save it as UTF-8.")
    stream = Unpacked(path, max_bytes)
    start = sample.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"{":
        return Source("json_lines", stream.compressed, None, json_lines(stream), stream.share, stream.close)
    if start == b"[":
        return Source("json_array", stream.compressed, None, json_array(stream), stream.share, stream.close)
    delimiter = sniff_delimiter(sample.decode("utf-8-sig", errors="replace"))
    return Source("csv", stream.compressed, delimiter, csv_rows(stream, delimiter), stream.share, stream.close)
