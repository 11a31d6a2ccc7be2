"""How fast rows come in, and what memory that takes: ``python -m tests.benchmarks.import [rows …]`` (default 100000 1000000).

Writes preference rows of about 1 KB as JSON lines, imports them the way the studio does (upload into quarantine, child
process, Parquet, hash, statistics), and reads pages back. Reports rows per second, the child's peak memory, the growth of
the process that stands for the web, and the time of a page anywhere among the rows.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from backend.datasets.importing import Quarantine
from backend.datasets.rowfile import RowReader

WORDS = [
    "the",
    "reward",
    "of",
    "a",
    "pair",
    "is",
    "what",
    "people",
    "said",
    "about",
    "it",
    "and",
    "not",
    "what",
    "we",
    "hoped",
    "they",
    "would",
    "say",
    "when",
    "nobody",
    "looked",
]


def write(path: Path, rows: int) -> None:
    """*rows* preference pairs, conversational, about 1 KB each; every hundredth prompt twice."""
    draw = random.Random(0)
    with path.open("w") as file:
        for n in range(rows):
            said = [" ".join(draw.choices(WORDS, k=draw.randint(20, 80))) for _ in range(3)]
            row = {
                "prompt": [{"role": "user", "content": f"{n - n % 100 // 99} {said[0]}"}],
                "chosen": [{"role": "assistant", "content": said[1]}],
                "rejected": [{"role": "assistant", "content": said[2]}],
                "source": "benchmark",
            }
            file.write(json.dumps(row) + "\n")


def own_mib() -> float:
    """This process's resident memory now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError


def measure(rows: int) -> None:
    """One import of *rows* rows, reported on one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        write(path, rows)
        quarantine = Quarantine(Path(folder) / "quarantine", 8 << 30)
        before = own_mib()
        started = time.perf_counter()
        with path.open("rb") as file:
            upload = quarantine.receive(file, path.name, 1, 1)
        received = time.perf_counter()
        written, _, _ = quarantine.write_rows(upload, None)
        ended = time.perf_counter()
        grown = own_mib() - before
        child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        draw, pages = random.Random(1), []
        for _ in range(50):
            start = draw.randrange(rows)
            at = time.perf_counter()
            with RowReader(written.path) as reader:
                found = list(reader.rows(start, start + 20))
            pages.append(time.perf_counter() - at)
            assert found[0][0] == start
        pages.sort()
        print(
            f"{rows:>9,} rows, {path.stat().st_size / 2**20:,.0f} MiB: upload {received - started:.1f} s, import {ended - received:.1f} s"
            f" = {rows / (ended - received):,.0f} rows/s; peak of the reader {child:.0f} MiB, web grew by {grown:.1f} MiB;"
            f" Parquet {written.path.stat().st_size / 2**20:,.0f} MiB; a page p50 {1000 * pages[25]:.0f} ms, p99 {1000 * pages[-1]:.0f} ms",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        measure(int(sys.argv[1]))
    else:
        # a process of its own for each size: peak memory cannot be taken back
        for size in sys.argv[1:] or ("1000", "100000", "1000000"):
            subprocess.run([sys.executable, "-m", "tests.benchmarks.import", size], check=True)
