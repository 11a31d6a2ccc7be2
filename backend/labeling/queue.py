"""The queue of a labeling session, in SQL: who holds which slot, and how the next one is handed out.

Every function runs inside the caller's transaction. The order of locks is always annotator → slot, so two people never
wait for each other; ``SKIP LOCKED`` lets two hundred of them claim side by side. All times come from the database clock.
"""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

HARD_LIMIT = 3
"""Beyond this imbalance between left and right the side is no longer drawn but corrected."""
CORRECTION = 2 / 3
"""Chance of the correcting side below that: Efron's biased coin (1971). Strict alternation would tell who is who."""
HEARTBEAT_CAP_MINUTES = 120
"""A page left open does not keep its assignment for ever."""


class Held(NamedTuple):
    """An assignment that a person holds now."""

    id: int
    uuid: UUID
    idempotency_key: UUID
    item_id: int
    slot_id: int
    shown_order: list[int]
    reserved_seconds: float
    prompt: Any
    completions: list[tuple[UUID, Any]]
    """Uuid and content by position in the record; no model's name is read."""


_VIEW = (
    "(select i.prompt from labeling_item i where i.id = s.item_id), "
    "(select jsonb_agg(jsonb_build_array(c.uuid, c.content) order by c.position) from labeling_completion c where c.item_id = s.item_id)"
)
"""What an annotator sees of the slot's item, read with the statement that hands it out."""


class Tally(NamedTuple):
    """Where one person stands in a session."""

    done: int
    holds: int
    """Assignments reserved for them now."""
    undoable: int | None
    """Their last judgment, if it can be taken back now."""
    balance: int
    """Times the first completion stood left, less the times it stood right, over all slots held or judged."""


def take_turn(session: Session, labeling_session_id: int, person_id: int) -> int:
    """Lock this person's row of the session (made if need be); returns the guidelines version they acknowledged."""
    who = {"session": labeling_session_id, "person": person_id}
    lock = text(
        "select guideline_number from labeling_annotator where labeling_session_id = :session and person_id = :person for update"
    )
    found = session.execute(lock, who).scalar_one_or_none()
    if found is None:
        make = "insert into labeling_annotator (labeling_session_id, person_id) values (:session, :person) on conflict do nothing"
        session.execute(text(make), who)
        found = session.execute(lock, who).scalar_one()
    return int(found)


def tally(session: Session, labeling_session_id: int, person_id: int, undo_minutes: float) -> Tally:
    """Count what this person holds and has judged, by one index scan over their own slots; and find what they may undo."""
    row = session.execute(
        text(
            "select count(*) filter (where s.state = 'judged'), count(*) filter (where s.state = 'reserved'), "
            "(select j.id from judgment j where j.labeling_session_id = :session and j.annotator_id = :person and j.kind <> 'undo' "
            " and not exists (select 1 from judgment u where u.supersedes_id = j.id) "
            " and j.id > (select coalesce(max(f.last_judgment_id), 0) from labeling_freeze f where f.labeling_session_id = :session) "
            " and j.submitted_at > clock_timestamp() - make_interval(secs => :undo) order by j.id desc limit 1), "
            "coalesce(sum(case when a.shown_order[1] = 0 then 1 else -1 end), 0) "
            "from labeling_slot s join assignment a on a.id = s.assignment_id "
            "where s.labeling_session_id = :session and s.annotator_id = :person"
        ),
        {"session": labeling_session_id, "person": person_id, "undo": undo_minutes * 60},
    ).one()
    return Tally(row[0], row[1], row[2], int(row[3]))


def left_for(session: Session, labeling_session_id: int, person_id: int, limit: int = 1000) -> int:
    """Items that wait for somebody and that this person never had, plus what they hold; counted up to *limit*."""
    return int(
        session.execute(
            text(
                "select count(*) from (select distinct s.item_id from labeling_slot s "
                "where s.labeling_session_id = :session and s.state <> 'judged' "
                "and (s.state = 'free' or s.reserved_until < clock_timestamp() or s.annotator_id = :person) "
                "and not exists (select 1 from labeling_slot m where m.item_id = s.item_id and m.annotator_id = :person "
                "  and m.state = 'judged') "
                "and not exists (select 1 from judgment j where j.item_id = s.item_id and j.annotator_id = :person "
                "  and j.kind = 'skip' and not exists (select 1 from judgment u where u.supersedes_id = j.id)) "
                "limit :limit) as found"
            ),
            {"session": labeling_session_id, "person": person_id, "limit": limit},
        ).scalar_one()
    )


def resume(session: Session, labeling_session_id: int, person_id: int, minutes: float) -> Held | None:
    """The assignment this person holds already, newest first: a reload and a second tab show the same one.

    An expired one that nobody else took is theirs again.
    """
    row = session.execute(
        text(
            "with mine as (select s.id from labeling_slot s "
            " where s.labeling_session_id = :session and s.annotator_id = :person and s.state = 'reserved' "
            " order by s.assignment_id desc limit 1 for update) "
            "update labeling_slot s set reserved_until = greatest(s.reserved_until, clock_timestamp() + make_interval(secs => :seconds)) "
            "from mine, assignment a where s.id = mine.id and a.id = s.assignment_id "
            "returning a.id, a.uuid, a.idempotency_key, a.item_id, s.id, a.shown_order, "
            f"extract(epoch from s.reserved_until - clock_timestamp()), {_VIEW}"
        ),
        {"session": labeling_session_id, "person": person_id, "seconds": minutes * 60},
    ).one_or_none()
    return _held(row)


def claim(session: Session, labeling_session_id: int, person_id: int, minutes: float, balance: int) -> Held | None:
    """Take the first slot of the queue that is free or whose reservation ran out, of an item this person never had.

    ``None``: nothing is left for them. Slots that others are claiming this instant are passed over.
    """
    row = session.execute(
        text(
            "select s.id, s.item_id, "
            "(select coalesce(sum(case when a.shown_order[1] = 0 then 1 else -1 end), 0) from labeling_slot o "
            " join assignment a on a.id = o.assignment_id where o.item_id = s.item_id and o.id <> s.id) "
            "from labeling_slot s where s.labeling_session_id = :session and s.state <> 'judged' "
            "and (s.state = 'free' or s.reserved_until < clock_timestamp()) "
            "and not exists (select 1 from labeling_slot m where m.item_id = s.item_id and m.annotator_id = :person) "
            "and not exists (select 1 from judgment j where j.item_id = s.item_id and j.annotator_id = :person "
            "  and j.kind = 'skip' and not exists (select 1 from judgment u where u.supersedes_id = j.id)) "
            "order by s.priority desc, s.item_id, s.number for update of s skip locked limit 1"
        ),
        {"session": labeling_session_id, "person": person_id},
    ).one_or_none()
    if row is None:
        return None
    slot_id, item_id, item_balance = row
    return assign(
        session, labeling_session_id, person_id, item_id, slot_id, draw_sides(balance, int(item_balance)), minutes
    )


def draw_sides(mine: int, item: int, chance: random.Random | None = None) -> list[int]:
    """``[0, 1]`` or ``[1, 0]``: which completion stands left, drawn so that annotator and item stay balanced.

    *mine* and *item* count how often the first completion stood left, less how often right.
    """
    draw = (chance or random.SystemRandom()).random()
    excess = mine if abs(mine) >= HARD_LIMIT else mine + item
    if abs(mine) >= HARD_LIMIT:
        first_left = mine < 0
    elif excess == 0:
        first_left = draw < 0.5
    else:
        first_left = (draw < CORRECTION) == (excess < 0)
    return [0, 1] if first_left else [1, 0]


def assign(
    session: Session,
    labeling_session_id: int,
    person_id: int,
    item_id: int,
    slot_id: int,
    shown_order: Sequence[int],
    minutes: float,
) -> Held:
    """Hand a locked slot to a person with these sides; whatever the slot held before is superseded."""
    row = session.execute(
        text(
            "with made as (insert into assignment (labeling_session_id, item_id, slot_id, annotator_id, shown_order) "
            " values (:session, :item, :slot, :person, :shown) returning id, uuid, idempotency_key, item_id, shown_order) "
            "update labeling_slot s set state = 'reserved', annotator_id = :person, assignment_id = made.id, judgment_id = null, "
            " reserved_until = clock_timestamp() + make_interval(secs => :seconds) "
            "from made where s.id = :slot "
            "returning made.id, made.uuid, made.idempotency_key, made.item_id, s.id, made.shown_order, "
            f"extract(epoch from s.reserved_until - clock_timestamp()), {_VIEW}"
        ),
        {
            "session": labeling_session_id,
            "item": item_id,
            "slot": slot_id,
            "person": person_id,
            "shown": list(shown_order),
            "seconds": minutes * 60,
        },
    ).one()
    held = _held(row)
    assert held is not None
    return held


def extend(session: Session, assignment_uuid: UUID, person_id: int, minutes: float) -> float | None:
    """A sign of life: keep the reservation, at most two hours from when it was assigned; seconds left, or ``None`` if lost."""
    row = session.execute(
        text(
            "update labeling_slot s set reserved_until = greatest(s.reserved_until, least("
            " clock_timestamp() + make_interval(secs => :seconds), a.assigned_at + make_interval(mins => :cap))) "
            "from assignment a where a.uuid = :uuid and a.annotator_id = :person "
            "and s.assignment_id = a.id and s.state = 'reserved' "
            "returning extract(epoch from s.reserved_until - clock_timestamp())"
        ),
        {"uuid": assignment_uuid, "person": person_id, "seconds": minutes * 60, "cap": HEARTBEAT_CAP_MINUTES},
    ).one_or_none()
    return None if row is None else max(0.0, float(row[0]))


def slot_for(session: Session, assignment_id: int, item_id: int, person_id: int, key: UUID) -> int | None:
    """Lock the slot that an answer to this assignment fills: its own, though late, or else a free one of the same item.

    ``None``: this key was used already, others have taken what there was, or this person holds the item anew.
    """
    return session.execute(
        text(
            "select s.id from labeling_slot s where s.item_id = :item "
            "and ((s.state = 'reserved' and s.assignment_id = :assignment) or s.state = 'free') "
            "and not exists (select 1 from labeling_slot m where m.item_id = :item and m.annotator_id = :person "
            "  and m.assignment_id <> :assignment) "
            "and not exists (select 1 from judgment j where j.annotator_id = :person and j.idempotency_key = :key) "
            "order by s.assignment_id = :assignment desc nulls last, s.number limit 1 for update of s"
        ),
        {"assignment": assignment_id, "item": item_id, "person": person_id, "key": key},
    ).scalar_one_or_none()


def store(session: Session, judgment: Mapping[str, Any], *, keeps_slot: bool) -> UUID:
    """Append a record and, with the same statement, let its locked slot hold it, or go to others (a skip)."""
    now = (
        "state = 'judged', annotator_id = :annotator_id, assignment_id = :assignment_id, judgment_id = made.id, reserved_until = null"
        if keeps_slot
        else "state = 'free', annotator_id = null, assignment_id = null, judgment_id = null, reserved_until = null"
    )
    columns = ", ".join(judgment)
    values = ", ".join(f"cast(:{name} as jsonb)" if name == "payload" else f":{name}" for name in judgment)
    return UUID(
        str(
            session.execute(
                text(
                    f"with made as (insert into judgment ({columns}) values ({values}) returning id, uuid) "
                    f"update labeling_slot s set {now} from made where s.id = :slot_id returning made.uuid"
                ),
                {**judgment, "payload": json.dumps(judgment["payload"])},
            ).scalar_one()
        )
    )


def _held(row: Any) -> Held | None:
    if row is None:
        return None
    completions = [(UUID(uuid), content) for uuid, content in row[8]]
    return Held(row[0], row[1], row[2], row[3], row[4], list(row[5]), float(row[6]), row[7], completions)
