"""A hundred thousand rows need no more memory than a thousand: neither in the web nor in the reading child."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import json, resource, sys
from pathlib import Path
from backend.datasets import importing
order = {"file": sys.argv[1], "max_bytes": 1 << 33, "mapping": None}
answer = importing._import(order)
print(json.dumps({"rows": answer["written"]["rows"], "kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


def peak(path: Path) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)],
        check=True,
        capture_output=True,
        env={"ARROW_DEFAULT_MEMORY_POOL": "system"},
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    peaks = {}
    for rows in (1_000, 100_000):
        path = tmp_path / f"{rows}" / "file"
        path.parent.mkdir()
        with path.open("w") as file:
            for n in range(rows):
                row = {
                    "prompt": f"question {n} " + "x" * 200,
                    "chosen": f"yes {n}" * 20,
                    "rejected": "no " * 40,
                    "n": n,
                }
                file.write(json.dumps(row) + "\n")
        found = peak(path)
        assert found["rows"] == rows
        peaks[rows] = found["kib"]
    # sixteen bytes of hashes per row are 1.6 MB; full buffers of one row group and Parquet's footer are the rest
    assert peaks[100_000] - peaks[1_000] < 40 * 1024, peaks
