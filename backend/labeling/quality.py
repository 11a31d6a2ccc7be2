"""Progress, agreement, bias, pace and disputed items of a labeling session, measured in SQL over the live judgments."""

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor, Permission
from backend.labeling import agreement
from backend.labeling.agreement import Estimate
from backend.labeling.judgments import excerpt
from backend.labeling.service import get_session

_LIVE = "labeling_slot s join judgment j on j.id = s.judgment_id where s.labeling_session_id = :session and s.state = 'judged'"
"""A slot's present judgment; undone and superseded ones are not live."""


class AnnotatorLine(NamedTuple):
    """One person's work in a session."""

    person_id: int
    name: str
    done: int
    skipped: int
    median_ms: float | None
    """Median time with the page in focus; ``None``: not measured."""
    ties: int
    left: Estimate | None
    """How often the left side won, of their judgments that are no tie."""
    with_others: Estimate | None
    """How often they said the same direction as another judge of the same item."""


class Disputed(NamedTuple):
    """An item whose judges lie far apart."""

    item_id: int
    uuid: UUID
    prompt: str
    strengths: list[int]
    reasons: list[str]


class Quality(NamedTuple):
    """Everything measured about a session. ``None`` means not measured; ``no_variation`` why an α is missing."""

    items: int
    overlap: int
    judgments: int
    wanted: int
    """Judgments when every slot is filled."""
    by_count: list[int]
    """Items with 0, 1 … overlap judgments."""
    last_hour: int
    first_at: Any
    last_at: Any
    strengths: list[int]
    """Live judgments by strength −3 … 3."""
    ties_both_good: int
    ties_both_bad: int
    skips: list[tuple[str, int]]
    late: int
    """Answers kept beside the record because the slot was gone."""
    doubly_judged: int
    alpha_ordinal: Estimate | None
    alpha_direction: Estimate | None
    same_direction: Estimate | None
    no_variation: bool
    """All judges of all items say the same, so α is not defined."""
    left_wins: Estimate | None
    longer_wins: Estimate | None
    """Of judgments that are no tie, on items whose lengths differ by a tenth or more."""
    tie_rate: Estimate | None
    annotators: list[AnnotatorLine] | None
    """``None`` for those who may not see names."""
    disputed: list[Disputed]


def measure(session: Session, actor: Actor, labeling_session_id: int) -> Quality:
    """Measure a labeling session. Annotators by name only for engineers."""
    found = get_session(session, actor, labeling_session_id)
    overlap = found.overlap
    here = {"session": found.id}

    def rows(sql: str) -> Sequence[Any]:
        return session.execute(text(sql), here).all()

    by_count = [0] * (overlap + 1)
    for judged, items in rows(
        "select judged, count(*) from (select count(*) filter (where state = 'judged') as judged from labeling_slot "
        "where labeling_session_id = :session group by item_id) as each group by judged"
    ):
        by_count[judged] = items
    patterns: dict[tuple[int, ...], int] = {
        tuple(values): count
        for values, count in rows(
            f"select said, count(*) from (select array_agg(j.strength order by j.strength) as said from {_LIVE} group by s.item_id) as each group by said"
        )
    }
    strengths = [0] * 7
    for pattern, count in patterns.items():
        for value in pattern:
            strengths[value + 3] += count
    (both_good, both_bad, left, decided, last_hour, first_at, last_at) = rows(
        "select count(*) filter (where j.tie_kind = 'both_good'), count(*) filter (where j.tie_kind = 'both_bad'), "
        "count(*) filter (where j.point < 4), count(*) filter (where j.point <> 4), "
        "count(*) filter (where j.submitted_at > clock_timestamp() - interval '1 hour'), min(j.submitted_at), max(j.submitted_at) "
        f"from {_LIVE}"
    )[0]
    (longer, differing) = rows(
        "select count(*) filter (where (j.strength > 0) = (b.characters > a.characters)), count(*) "
        "from labeling_slot s join judgment j on j.id = s.judgment_id "
        "join labeling_completion a on a.item_id = s.item_id and a.position = 0 "
        "join labeling_completion b on b.item_id = s.item_id and b.position = 1 "
        "where s.labeling_session_id = :session and s.state = 'judged' and j.strength <> 0 "
        "and greatest(a.characters, b.characters) >= 1.1 * least(a.characters, b.characters) and a.characters <> b.characters"
    )[0]
    skips = [
        (reason, count)
        for reason, count in rows(
            "select j.skip_reason, count(*) from judgment j where j.labeling_session_id = :session and j.kind = 'skip' "
            "and not exists (select 1 from judgment u where u.supersedes_id = j.id) group by 1 order by 2 desc, 1"
        )
    ]
    late = rows(
        "select count(*) from late_judgment l join assignment a on a.id = l.assignment_id where a.labeling_session_id = :session"
    )[0][0]
    doubly = agreement.doubly_judged(patterns)
    enough = doubly >= agreement.MINIMUM_ITEMS
    alpha = agreement.alpha_estimate(patterns, "ordinal") if enough else None
    total = sum(strengths)
    return Quality(
        items=sum(by_count),
        overlap=overlap,
        judgments=total,
        wanted=overlap * sum(by_count),
        by_count=by_count,
        last_hour=last_hour,
        first_at=first_at,
        last_at=last_at,
        strengths=strengths,
        ties_both_good=both_good,
        ties_both_bad=both_bad,
        skips=skips,
        late=late,
        doubly_judged=doubly,
        alpha_ordinal=alpha,
        alpha_direction=agreement.alpha_estimate(agreement.directions(patterns)) if enough else None,
        same_direction=agreement.raw_agreement(agreement.directions(patterns)) if enough else None,
        no_variation=enough and alpha is None,
        left_wins=agreement.wilson(left, decided),
        longer_wins=agreement.wilson(longer, differing),
        tie_rate=agreement.wilson(strengths[3], total),
        annotators=_annotators(rows) if actor.may(Permission.ENGINEER, found.project_id) else None,
        disputed=_disputed(rows),
    )


def _annotators(rows: Any) -> list[AnnotatorLine]:
    with_others = {
        person: agreement.wilson(same, pairs)
        for person, same, pairs in rows(
            "select s.annotator_id, count(*) filter (where sign(j.strength) = sign(k.strength)), count(*) "
            "from labeling_slot s join judgment j on j.id = s.judgment_id "
            "join labeling_slot o on o.item_id = s.item_id and o.id <> s.id and o.state = 'judged' "
            "join judgment k on k.id = o.judgment_id "
            "where s.labeling_session_id = :session and s.state = 'judged' group by 1"
        )
    }
    return [
        AnnotatorLine(
            person, name, done, skipped, median, ties, agreement.wilson(left, done - ties), with_others.get(person)
        )
        for person, name, done, skipped, median, ties, left in rows(
            "select p.id, p.name, count(s.id), "
            "count(j.id) filter (where j.kind = 'skip' and not exists (select 1 from judgment u where u.supersedes_id = j.id)), "
            "percentile_cont(0.5) within group (order by j.active_ms) filter (where s.id is not null), "
            "count(s.id) filter (where j.point = 4), count(s.id) filter (where j.point < 4) "
            "from judgment j join person p on p.id = j.annotator_id "
            "left join labeling_slot s on s.judgment_id = j.id and s.state = 'judged' "
            "where j.labeling_session_id = :session group by p.id, p.name order by 3 desc, p.name"
        )
    ]


def _disputed(rows: Any) -> list[Disputed]:
    return [
        Disputed(item_id, uuid, excerpt(prompt), strengths, [reason for reason in reasons if reason])
        for item_id, uuid, prompt, strengths, reasons in rows(
            "select i.id, i.uuid, i.prompt, d.said, d.reasons from (select s.item_id, array_agg(j.strength order by j.id) as said, "
            "array_agg(j.reason order by j.id) as reasons, max(j.strength) - min(j.strength) as spread "
            f"from {_LIVE} group by s.item_id having min(j.strength) < 0 and max(j.strength) > 0 "
            "order by spread desc, s.item_id limit 10) as d join labeling_item i on i.id = d.item_id order by d.spread desc, i.id"
        )
    ]
