"""What one should know of rows before training on them, counted while they stream past.

Memory does not grow with the rows but for 16 bytes per row: 64-bit hashes by which duplicates are found.
"""

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from backend.datasets.rows import COLUMNS, TEXTS, Row, RowType
from backend.intervals import wilson

BUCKETS = 16  # hashes are counted in sixteenths, so that counting needs little beside the hashes themselves
MASK = 2**64 - 1


def text_of(value: Any) -> str:
    """The text of a column: itself, or a conversation's contents joined."""
    return value if isinstance(value, str) else "\n".join(message["content"] for message in value)


class Lengths:
    """A histogram of whole numbers (negative ones too) in a few hundred counters; values above 64 are kept to 1.6 %."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.n = self.total = 0
        self.low, self.high = 0, 0

    def add(self, value: int) -> None:
        """Count one value."""
        if not self.n:
            self.low = self.high = value
        elif value > self.high:
            self.high = value
        elif value < self.low:
            self.low = value
        self.n += 1
        self.total += value
        size = value if value >= 0 else -value
        if size >= 128:
            shift = size.bit_length() - 7
            size = (size >> shift) << shift
        self.counts[size if value >= 0 else -size] += 1

    def quantile(self, share: float) -> int:
        """The value below which *share* of all lie."""
        seen, wanted = 0, share * self.n
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= wanted:
                return value
        return 0

    def summary(self, bars: int = 32) -> dict[str, Any]:
        """Count, extremes, mean, quantiles, and bars of equal width up to the 99th percentile (the last takes the rest)."""
        symmetric = self.low < 0
        top = max(1, self.quantile(0.99), -self.quantile(0.01) if symmetric else 0)
        width = max(1, math.ceil((2 * top if symmetric else top) / bars))
        start = -width * (bars // 2) if symmetric else 0
        counts = [0] * bars
        for value, n in self.counts.items():
            counts[min(bars - 1, max(0, (value - start) // width))] += n
        return {
            "count": self.n,
            "min": self.low,
            "max": self.high,
            "mean": self.total / self.n if self.n else 0,
            "median": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "start": start,
            "width": width,
            "bars": counts,
        }


class Moments:
    """Count, extremes, mean and standard deviation of numbers. Welford 1962."""

    def __init__(self) -> None:
        self.n, self.mean, self._squares = 0, 0.0, 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, value: float) -> None:
        """Count one value."""
        self.n += 1
        before = value - self.mean
        self.mean += before / self.n
        self._squares += before * (value - self.mean)
        self.low, self.high = min(self.low, value), max(self.high, value)

    def summary(self) -> dict[str, float]:
        """The figures, as JSON; the deviation is the population's."""
        deviation = math.sqrt(max(self._squares, 0.0) / self.n)
        return {"count": self.n, "min": self.low, "max": self.high, "mean": self.mean, "deviation": deviation}


class Hashes:
    """64-bit hashes, eight bytes each."""

    def __init__(self) -> None:
        self._buckets = [array("Q") for _ in range(BUCKETS)]

    def add(self, value: int) -> None:
        """Remember one hash; its low bits are free for the caller, so buckets go by the high ones."""
        self._buckets[value >> 60].append(value)

    def _arrays(self) -> list[pa.UInt64Array]:
        return [pa.Array.from_buffers(pa.uint64(), len(b), [None, pa.py_buffer(b)]) for b in self._buckets if b]

    def distinct(self) -> int:
        """How many different hashes there are."""
        return sum(pc.count_distinct(a).as_py() for a in self._arrays())

    def in_both_directions(self) -> int:
        """How many rows have a partner whose hash differs only in the lowest bit."""
        found = 0
        for a in self._arrays():
            unique = pc.unique(a)
            partners = pc.bit_wise_xor(a, pa.scalar(1, pa.uint64()))
            found += pc.sum(pc.is_in(partners, value_set=unique)).as_py() or 0
        return found


class Statistics:
    """Counts rows of one type; ``finish`` gives what the version keeps as ``statistics``."""

    def __init__(self, row_type: RowType) -> None:
        self._row_type = row_type
        self._columns = [c for c in COLUMNS[row_type] if c in TEXTS]
        self._characters = {column: Lengths() for column in self._columns}
        self._turns = {column: Lengths() for column in self._columns}
        self._empty = Counter[str]()
        self._rows = Hashes()
        self._prompts = Hashes()
        self._n = self._same = self._longer = self._equal = 0
        self._labels = Counter[bool]()
        self._difference = Lengths()
        self._ties = 0
        self._steps = Lengths()
        self._right = 0
        self._mistaken = 0
        self._scores: dict[str, Moments] = {}

    def add(self, row: Row) -> None:
        """Count one checked row."""
        self._n += 1
        parts = []
        sizes: dict[str, int] = {}
        for column in self._columns:
            value = row.get(column)
            if value is None:
                continue
            if isinstance(value, str):
                size, blank = len(value), not value or value.isspace()
                parts.append((column, hash(value)))
            else:
                size, blank = sum(len(m["content"]) for m in value), any(not m["content"].strip() for m in value)
                self._turns[column].add(len(value))
                parts.append((column, hash(orjson.dumps(value))))
            sizes[column] = size
            self._characters[column].add(size)
            if blank:
                self._empty[column] += 1
            if column == "prompt":
                self._prompts.add(parts[-1][1] & MASK)
        if self._row_type is RowType.PREFERENCE:
            self._pair(dict(parts), sizes, row.get("probability"))
        else:
            if self._row_type is RowType.UNPAIRED:
                self._labels[row["label"]] += 1
                parts.append(("label", int(row["label"])))
            if self._row_type is RowType.STEPWISE:
                self._steps.add(len(row["labels"]))
                self._right += sum(row["labels"])
                self._mistaken += not all(row["labels"])
                parts += [(step, int(label)) for step, label in zip(row["completions"], row["labels"], strict=True)]
            if self._row_type is RowType.SCORED:
                for name, score in row["scores"].items():
                    self._scores.setdefault(name, Moments()).add(score)
                    parts.append((name, hash(score)))
            self._rows.add(hash(tuple(parts)) & MASK)

    def _pair(self, hashes: dict[str, int], sizes: dict[str, int], probability: float | None) -> None:
        chosen, rejected = hashes["chosen"], hashes["rejected"]
        # the same for both directions but for the lowest bit: so one list finds duplicates and contradictions
        pair = hash((hashes.get("prompt"), min(chosen, rejected), max(chosen, rejected))) & (MASK - 1)
        if probability == 0.5:
            self._ties += 1
        else:
            difference = sizes["chosen"] - sizes["rejected"]
            if probability is not None and probability < 0.5:  # most prefer the rejected one
                difference = -difference
            self._difference.add(difference)
            self._longer += difference > 0
            self._equal += difference == 0
        if chosen == rejected:
            self._same += 1
            pair = hash((pair, "same")) & (MASK - 1)
        self._rows.add(pair | (chosen > rejected))

    def finish(self) -> dict[str, Any]:
        """All figures, as JSON."""
        found: dict[str, Any] = {
            "rows": self._n,
            "duplicates": self._n - self._rows.distinct(),
            "empty": {column: self._empty[column] for column, seen in self._characters.items() if seen.n},
            "characters": {column: seen.summary() for column, seen in self._characters.items() if seen.n},
            "turns": {column: seen.summary() for column, seen in self._turns.items() if seen.n},
        }
        if "prompt" in self._columns:
            found["prompts"] = self._prompts.distinct()
        if self._row_type is RowType.UNPAIRED:
            found["labels"] = {"true": self._labels[True], "false": self._labels[False]}
        if self._row_type is RowType.STEPWISE:
            found["steps"] = self._steps.summary() | {"right": self._right, "solutions_with_a_mistake": self._mistaken}
        if self._row_type is RowType.SCORED:
            found["scores"] = {name: seen.summary() for name, seen in sorted(self._scores.items())}
        if self._row_type is RowType.PREFERENCE:
            # Of the decided pairs, as reward models are measured. Equally long ones leave the baseline to chance: half a win.
            longer = wilson(self._longer + self._equal / 2, self._difference.n)
            found |= {
                "chosen_is_rejected": self._same,
                "ties": self._ties,
                "contradictory": self._rows.in_both_directions(),
                "difference": self._difference.summary(),
                "longer_wins": {
                    "chosen_longer": self._longer,
                    "equally_long": self._equal,
                    "decided": self._difference.n,
                    "share": longer.value if longer else None,
                    "low": longer.low if longer else None,
                    "high": longer.high if longer else None,
                },
            }
        return found


def by_words(statistics: dict[str, Any], columns: Sequence[str]) -> str:
    """One sentence for screen readers and logs."""
    parts = [f"{statistics['rows']:,} rows"]
    parts += [
        f"median {statistics['characters'][c]['median']:,} characters in {c}"
        for c in columns
        if c in statistics["characters"]
    ]
    return ", ".join(parts)
