"""kill -9 of the training child, the worker, the web, Redis and Postgres, at five moments each of a running DPO run.

``python -m tests.benchmarks.kills [--steps 60] [--kinds child,worker]`` prints one line per kind. A run passes if it ends, its loss
curve equals the uninterrupted one to 1e-6 relative, every metric point is there exactly once, and a reader of the event
stream that reconnects by itself ends with the very same values.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.journeys.stack import KINDS, Page, Stack


def difference(one: list[tuple[int, Any]], two: list[tuple[int, Any]]) -> float:
    """Greatest relative difference of two curves; infinite if their steps differ."""
    if [step for step, _ in one] != [step for step, _ in two]:
        return math.inf
    return max((abs(a - b) / max(abs(a), abs(b), 1e-12) for (_, a), (_, b) in zip(one, two, strict=True)), default=0.0)


def watched(stack: Stack, run_id: int, page: Page) -> str:
    """What the page has wrong at the end, in words; empty if nothing."""
    page.join(20)
    stored = {(key, step): value for key, points in stack.points(run_id).items() for step, value in points}
    if page.ids != sorted(set(page.ids)):
        return "ids out of order"
    missing = [place for place in stored if page.values.get(place) != stored[place]]
    return f"{len(missing)} values differ" if missing else ""


def main() -> None:
    """Kill, and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--kinds", default=",".join(KINDS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="studio-kills-") as home, Stack(Path(home)) as stack:
        began = time.monotonic()
        plain = stack.submit(given.steps, given.every)
        stack.wait(plain, lambda run: run.state == "succeeded", "the run without kills")
        baseline = stack.points(plain)
        count = sum(len(points) for points in baseline.values())
        print(f"without kills: {time.monotonic() - began:.0f} s, {count} points", flush=True)
        moments = [given.steps * (2 * n + 1) // 10 for n in range(5)]
        for kind in given.kinds.split(","):
            began = time.monotonic()
            run_id = stack.submit(given.steps, given.every)
            page = Page(stack, run_id)
            page.start()
            killed = []
            for moment in moments:
                run = stack.wait(
                    run_id,
                    lambda run, moment=moment: (run.state == "running" and run.progress_step >= moment) or run.state in ("succeeded", "failed"),  # type: ignore[misc]
                    f"step {moment}",
                )  # fmt: skip
                if run.state == "running" and stack.kill(kind):
                    killed.append(run.progress_step)
            run = stack.wait(run_id, lambda run: run.state in ("succeeded", "failed"), "its end")
            points = stack.points(run_id)
            worst = max(difference(baseline[key], points.get(key, [])) for key in baseline)
            wrong = watched(stack, run_id, page)
            print(
                f"{kind:9} killed at steps {killed}: {run.state} after {time.monotonic() - began:.0f} s, "
                f"resumed from {[step for _, step in stack.attempts(run_id)[1:]]}, "
                f"{sum(len(p) for p in points.values())} points, greatest relative difference {worst:.1e}, "
                f"page: {wrong or 'the same values'}, {page.connections} connections",
                flush=True,
            )
            if run.state != "succeeded":
                print(stack.log(run_id)[-3000:])


if __name__ == "__main__":
    main()
