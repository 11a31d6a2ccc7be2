"""One supervisor in a process of its own, to be killed: ``python -m tests.worker.supervisor <json>``."""

import json
import sys
from pathlib import Path

from backend.artifacts import Artifacts
from backend.db import connect, make_sessions
from worker.process import execute_next
from worker.supervision import Supervision


def main() -> None:
    """Carry out the next run."""
    given = json.loads(sys.argv[1])
    home = Path(given["home"])
    sessions = make_sessions(connect(given["url"]), artifacts=Artifacts(given["artifacts"], home / "cache"))
    how = Supervision(home=home, command=given["command"], drain=home / "drain", **given["how"])
    print(execute_next(sessions, "gpu-1", how), flush=True)


if __name__ == "__main__":
    main()
