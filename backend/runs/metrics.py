"""Points of metrics: stored once per (run, name, step), read in milliseconds however many there are.

Beside the points lie buckets of 64 and of 4,096 steps with smallest, largest, sum and last value. They are recomputed from
the points whenever a point of theirs is written, in the same transaction, so a chart from buckets has the exact extremes.

The newest attempt wins. When an attempt goes on from a checkpoint, the points beyond it are taken away (:func:`rewind`):
that branch was never part of the model. What was said remains in ``run_event``.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.orm import Session

from backend.runs.events import NonFinite, Number, encode

FLAGS: dict[int, NonFinite] = {1: "nan", 2: "inf", 3: "-inf"}
FLAG_OF: dict[Number, int] = {word: flag for flag, word in FLAGS.items()}
RAW_PER_POINT = 5
"""Up to this many stored points per drawn one are read as they are; beyond, buckets answer."""


class Point(NamedTuple):
    """One value of one metric; *value* is a number or ``"nan"``, ``"inf"``, ``"-inf"``."""

    key: str
    step: int
    value: Number
    at: datetime


_KEYS_ADD = text("insert into metric_key (name) select unnest(cast(:names as text[])) on conflict do nothing")
_KEYS_GET = text("select name, id from metric_key where name = any(cast(:names as text[]))")

_STORE = text("""
insert into metric_point as p (run_id, key_id, step, attempt, at, value, flag)
select :run, k, s, :attempt, a, v, f
from unnest(cast(:keys as int[]), cast(:steps as bigint[]), cast(:ats as timestamptz[]),
            cast(:vals as float8[]), cast(:flags as smallint[])) as u (k, s, a, v, f)
on conflict (run_id, key_id, step) do update
set attempt = excluded.attempt, at = excluded.at, value = excluded.value, flag = excluded.flag
where p.attempt <= excluded.attempt
""")

# the lateral subquery makes the planner walk the primary key once per bucket, whatever its statistics say
_ROLL = text("""
insert into metric_rollup (run_id, key_id, width, bucket, n, finite, low, high, total, last_step, last_at, last, flag)
select :run, t.k, 64, t.b, s.n, s.finite, s.low, s.high, s.total, s.last_step, s.last_at, s.last, s.flag
from unnest(cast(:keys as int[]), cast(:buckets as bigint[])) as t (k, b)
cross join lateral (
  select count(*) as n, count(value) as finite, min(value) as low, max(value) as high,
         sum(value) filter (where abs(value) < 1e300) as total, max(step) as last_step,
         (array_agg(at order by step desc))[1] as last_at, (array_agg(value order by step desc))[1] as last,
         max(flag) as flag
  from metric_point p where p.run_id = :run and p.key_id = t.k and p.step >= t.b * 64 and p.step < (t.b + 1) * 64
) s where s.n > 0
on conflict (run_id, key_id, width, bucket) do update
set n = excluded.n, finite = excluded.finite, low = excluded.low, high = excluded.high, total = excluded.total,
    last_step = excluded.last_step, last_at = excluded.last_at, last = excluded.last, flag = excluded.flag
""")
_ROLL_UP = text("""
insert into metric_rollup (run_id, key_id, width, bucket, n, finite, low, high, total, last_step, last_at, last, flag)
select :run, t.k, 4096, t.b, s.n, s.finite, s.low, s.high, s.total, s.last_step, s.last_at, s.last, s.flag
from unnest(cast(:keys as int[]), cast(:buckets as bigint[])) as t (k, b)
cross join lateral (
  select sum(n) as n, sum(finite) as finite, min(low) as low, max(high) as high,
         sum(total) filter (where abs(total) < 1e300) as total, max(last_step) as last_step,
         (array_agg(last_at order by bucket desc))[1] as last_at, (array_agg(last order by bucket desc))[1] as last,
         max(flag) as flag
  from metric_rollup r
  where r.run_id = :run and r.key_id = t.k and r.width = 64 and r.bucket >= t.b * 64 and r.bucket < (t.b + 1) * 64
) s where s.n > 0
on conflict (run_id, key_id, width, bucket) do update
set n = excluded.n, finite = excluded.finite, low = excluded.low, high = excluded.high, total = excluded.total,
    last_step = excluded.last_step, last_at = excluded.last_at, last = excluded.last, flag = excluded.flag
""")


def _known(session: Session, names: Sequence[str]) -> dict[str, int]:
    rows = session.execute(_KEYS_GET, {"names": list(names)}).all()
    return {row.name: row.id for row in rows}


def _key_ids(session: Session, names: Sequence[str]) -> dict[str, int]:
    wanted = sorted(set(names))
    found = _known(session, wanted)
    if missing := [name for name in wanted if name not in found]:
        session.execute(_KEYS_ADD, {"names": missing})
        found |= _known(session, missing)
    return found


def _roll(session: Session, run_id: int, places: set[tuple[int, int]]) -> None:
    """Recompute the buckets of *places*, pairs of key id and 64-step bucket."""
    fine = sorted(places)
    coarse = sorted({(key, bucket // 64) for key, bucket in places})
    for statement, pairs in ((_ROLL, fine), (_ROLL_UP, coarse)):
        session.execute(
            statement, {"run": run_id, "keys": [key for key, _ in pairs], "buckets": [bucket for _, bucket in pairs]}
        )


def store(session: Session, run_id: int, attempt: int, points: Sequence[Point]) -> None:
    """Write *points*; the same points again change nothing. The caller holds the run (its fence was checked)."""
    if not points:
        return
    ids = _key_ids(session, [point.key for point in points])
    # one row may be touched once per statement; the last word on a step counts
    unique = {(ids[point.key], point.step): point for point in points}
    values: list[float | None] = []
    flags: list[int | None] = []
    for point in unique.values():
        number = encode(point.value) if isinstance(point.value, float | int) else point.value
        flag = FLAG_OF.get(number) if isinstance(number, str) else None
        flags.append(flag)
        values.append(None if flag is not None else float(number))
    session.execute(
        _STORE,
        {
            "run": run_id,
            "attempt": attempt,
            "keys": [key for key, _ in unique],
            "steps": [step for _, step in unique],
            "ats": [point.at for point in unique.values()],
            "vals": values,
            "flags": flags,
        },
    )
    _roll(session, run_id, {(key, step // 64) for key, step in unique})


def rewind(session: Session, run_id: int, step: int) -> None:
    """Take away the points after *step*: an attempt goes on from there."""
    arguments = {"run": run_id, "step": step}
    gone = session.execute(
        text("delete from metric_point where run_id = :run and step > :step returning key_id"), arguments
    )
    keys = set(gone.scalars())
    if not keys:
        return
    for width in (64, 4096):
        session.execute(
            text("delete from metric_rollup where run_id = :run and width = :width and bucket >= :bucket"),
            {"run": run_id, "width": width, "bucket": step // width},
        )
    _roll(session, run_id, {(key, step // 64) for key in keys})


def keys_of(session: Session, run_id: int) -> list[str]:
    """Names of the metrics that the run has points of."""
    query = text("""
        select name from metric_key where id in (select key_id from metric_rollup where run_id = :run and width = 4096)
        order by name
    """)
    return list(session.execute(query, {"run": run_id}).scalars())


class Series(NamedTuple):
    """A metric's points, thinned out to at most the number asked for.

    ``values`` is the point itself, or the mean of those that one entry stands for, or the name of what was not finite
    among them; ``low`` and ``high`` are their exact extremes, ``steps`` the last of their steps, ``seconds`` the time of
    that step since the run first started. ``n`` counts the stored points in the range, ``last`` is the newest of them.
    """

    steps: list[int]
    values: list[Number | None]
    low: list[float | None]
    high: list[float | None]
    seconds: list[float | None]
    n: int
    last: Number | None


_RAW = """
select step as start, 1 as n, case when value is null then 0 else 1 end as finite, value as low, value as high,
       value as total, step as last_step, at as last_at, value as last, flag
from metric_point where run_id = :run and key_id = :key and step between :low and :high
"""
_BUCKETS = """
select bucket * width as start, n, finite, low, high, total, last_step, last_at, last, flag
from metric_rollup where run_id = :run and key_id = :key and width = :width
  and bucket between :low / width and :high / width
"""
_READ = """
select max(last_step), sum(n), sum(finite), min(low), max(high), sum(total) filter (where abs(total) < 1e300),
       (array_agg(last_at order by start desc))[1], (array_agg(last order by start desc))[1], max(flag),
       (array_agg(flag order by start desc))[1]
from ({source}) s group by (start - :low) * :points / :span order by 1
"""


def series(
    session: Session,
    run_id: int,
    keys: Sequence[str],
    points: int,
    *,
    from_step: int = 0,
    to_step: int | None = None,
    started_at: datetime | None = None,
) -> dict[str, Series]:
    """The points of *keys* between the steps, at most about *points* entries each; names without points are left out."""
    found = _known(session, keys)
    read: dict[str, Series] = {}
    for key in dict.fromkeys(keys):
        if key in found:
            one = _read(session, run_id, found[key], points, from_step, to_step, started_at)
            if one.n:
                read[key] = one
    return read


def _read(
    session: Session,
    run_id: int,
    key: int,
    points: int,
    from_step: int,
    to_step: int | None,
    started_at: datetime | None,
) -> Series:
    bounds: Mapping[str, Any] = {
        "run": run_id,
        "key": key,
        "low": from_step,
        "high": 2**62 if to_step is None else to_step,
    }
    low, high = session.execute(
        text("""
            select (select step from metric_point where run_id = :run and key_id = :key and step between :low and :high
                    order by step limit 1),
                   (select step from metric_point where run_id = :run and key_id = :key and step between :low and :high
                    order by step desc limit 1)
        """),
        bounds,
    ).one()
    if low is None:
        return Series([], [], [], [], [], 0, None)
    arguments = {"run": run_id, "key": key, "low": low, "high": high, "points": points, "span": high - low + 1}
    fine = text("select coalesce(sum(n), 0), count(*) from metric_rollup where run_id = :run and key_id = :key "
                "and width = 4096 and bucket between :low / 4096 and :high / 4096")  # fmt: skip
    stored, _ = session.execute(fine, arguments).one()
    if stored <= RAW_PER_POINT * points or high - low < RAW_PER_POINT * points:
        source = _RAW
        if stored <= points:
            arguments["points"] = arguments["span"]  # one entry per point
    else:
        # 64-step buckets unless there are far more of them than can be drawn
        width = 64 if stored / 64 <= 40 * points else 4096
        source, arguments = _BUCKETS, {**arguments, "width": width}
    rows = session.execute(text(_READ.format(source=source)), arguments).all()
    made = Series([], [], [], [], [], sum(int(row[1]) for row in rows), _word(rows[-1][7], rows[-1][9]))
    for last_step, n, finite, least, most, total, last_at, last, flag, _ in rows:
        made.steps.append(last_step)
        mean = last if n == 1 or total is None or not finite else total / int(finite)
        made.values.append(_word(mean, flag))
        made.low.append(least)
        made.high.append(most)
        made.seconds.append(None if started_at is None else round(max(0.0, (last_at - started_at).total_seconds()), 3))
    return made


def _word(value: float | None, flag: int | None) -> Number | None:
    """The number, or what was not finite."""
    if flag is not None:
        return FLAGS[flag]
    return value if value is None or math.isfinite(value) else encode(value)


def points_of(session: Session, run_id: int, key: str) -> list[tuple[int, Number | None]]:
    """Every stored point of *key*, unthinned: ``(step, value)``."""
    query = text("""
        select step, value, flag from metric_point
        where run_id = :run and key_id = (select id from metric_key where name = :key) order by step
    """)
    return [(step, _word(value, flag)) for step, value, flag in session.execute(query, {"run": run_id, "key": key})]
