"""Files that people bring: JSON lines, JSON arrays, CSV (each plain or gzipped) and Parquet, told apart by their content.

Everything streams: no buffer holds more than one line of at most 2 MB and one chunk. Every way in which a file can be
broken or hostile is an error with its line, never a traceback; what a row may hold is in ``strictjson.py``.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from backend.datasets.parquet import ParquetRows
from backend.datasets.rowfile import MAX_COLUMNS, MAX_ROW_BYTES
from backend.datasets.rows import Row
from backend.datasets.strictjson import (
    DECODER,
    MAX_DEPTH,
    BadFile,
    FileTooLarge,
    as_row,
    at_line,
    check,
    not_utf8,
    parse,
)

CHUNK = 1 << 18
MAX_RATIO = 100
RATIO_FREE_BYTES = 16 << 20
"""Small files may be as repetitive as they like."""
SNIFF_BYTES = 1 << 16

Kind = Literal["json_lines", "json_array", "csv", "parquet"]


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


def json_lines(stream: Unpacked) -> Iterator[tuple[int, Row]]:
    """One object per line."""
    for number, line in lines(stream):
        text = line.strip()
        if not text:
            continue
        try:
            yield number, as_row(parse(text))
        except (BadFile, FileTooLarge) as error:
            if number == 1 and text == b"{":
                error.remedy = "Each row stands on one line: {…} newline {…}. Or send a list: [{…}, {…}]."
            raise at_line(error, number) from None


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
                    value, end = DECODER.raw_decode(buffer, at)
                    break
                except json.JSONDecodeError as error:
                    if len(buffer) - at > MAX_ROW_BYTES:
                        wrong: BadFile | FileTooLarge = FileTooLarge(f"The row is longer than {MAX_ROW_BYTES:,} bytes.")
                        raise at_line(wrong, line) from None
                    more = read()
                    if not more:
                        place = line + buffer.count("\n", at, error.pos)
                        raise BadFile(f"This is no JSON: {error.msg}.", line=place) from None
                    buffer, at = buffer[at:] + more, 0
                except RecursionError:
                    raise BadFile(f"The row is nested more than {MAX_DEPTH} levels deep.", line=line) from None
                except BadFile as error:
                    raise at_line(error, line) from None
            try:
                check(value)
                yield line, as_row(value)
            except (BadFile, FileTooLarge) as error:
                raise at_line(error, line) from None
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
                raise at_line(BadFile("There is a NUL byte.", remedy="Save the file as UTF-8 text."), self.number)
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise at_line(not_utf8(error), self.number) from None


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
        raise at_line(error, begins) from None


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


# --- all of them -------------------------------------------------------------------------------------------------


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
