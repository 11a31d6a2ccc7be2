"""``python -m worker.sandbox [tier]``: tries the sandbox on this machine and prints the report, or why there is none (exit code 1)."""

import json
import sys
from typing import cast

from worker.sandbox import Sandbox, SandboxUnavailable
from worker.sandbox.cage import TIERS, Tier


def main(arguments: list[str]) -> int:
    """Try, and print one line of JSON."""
    try:
        with Sandbox.open(cast(list[Tier], arguments) or TIERS, size=1) as sandbox:
            print(json.dumps(sandbox.report.plain()))
    except SandboxUnavailable as error:
        print(json.dumps({"tier": None, "reason": str(error), "remedy": error.remedy}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
