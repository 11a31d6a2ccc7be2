"""Runs over REST, and the stream of one: what a program sees."""

import json
from typing import Any

from fastapi.testclient import TestClient

from backend.accounts.actors import Actor
from backend.artifacts import FileEntry
from backend.db import Sessions, unit_of_work
from backend.runs import attempts, leases, readout
from backend.runs import events as said
from backend.runs.leases import Ending
from tests.backend.runs.material import Material, claim, hello, started, submit
from tests.conftest import MakeActor, MakeClient


def finished(sessions: Sessions, engineer: Actor, material: Material, steps: int = 20) -> int:
    """A run that went well, without a model."""
    run_id = submit(sessions, engineer, material, steps=steps)
    hello(sessions)
    held = claim(sessions)
    lines: list[Any] = [started(steps)]
    lines += [said.Metrics(step=n, values={"loss": "nan" if n == 3 else 1 / n}) for n in range(1, steps + 1)]
    lines.append(
        said.Completions(step=steps, samples=[said.Completion(prompt="a", completion="b", tokens=1, ended=True)])
    )
    lines.append(said.Checkpoint(step=steps, folder="x"))
    with unit_of_work(sessions) as session:
        manifest = [FileEntry("x", 1, "0" * 64)]
        attempts.record(session, run_id, held.fence, 1, 0, lines, manifests={len(lines) - 1: manifest})
    with unit_of_work(sessions) as session:
        leases.conclude(session, run_id, held.fence, Ending("succeeded", step=steps), pause_seconds=0)
    return run_id


def heard(client: TestClient, run_id: int, **headers: str) -> list[tuple[int, str, Any]]:
    """The whole stream: ``(id, event, data)``."""
    found, number, event = [], 0, ""
    with client.stream(
        "GET", f"/api/v1/runs/{run_id}/events", headers={k.replace("_", "-"): v for k, v in headers.items()}
    ) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            field, _, value = line.partition(": ")
            if field == "id":
                number = int(value)
            elif field == "event":
                event = value
            elif field == "data":
                found.append((number, event, json.loads(value)))
    return found


def test_submit_read_list_cancel(make_client: MakeClient, engineer: Actor, material: Material) -> None:
    client = make_client(engineer)
    body = {"spec": material.spec().model_dump(mode="json"), "idempotency_key": "once"}
    path = f"/api/v1/projects/{material.project_id}/runs"
    first, second = client.post(path, json=body), client.post(path, json=body)
    assert first.status_code == 201
    assert first.json()["id"] == second.json()["id"]
    run_id = first.json()["id"]
    assert client.get(f"/api/v1/runs/{run_id}").json()["spec"]["method"] == "dpo"
    other = client.post(path, json={**body, "name": "another"})
    assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-key-reused")
    assert client.post(f"/api/v1/runs/{run_id}/cancel").json()["state"] == "cancelled"
    assert [run["id"] for run in client.get(path).json()["items"]] == [run_id]


def test_bad_specs_name_the_field(make_client: MakeClient, engineer: Actor, material: Material) -> None:
    client = make_client(engineer)
    path = f"/api/v1/projects/{material.project_id}/runs"
    spec = material.spec().model_dump(mode="json")
    for change, field in (({"dataset": 99}, "dataset"), ({"base_model": 99}, "base_model")):
        answer = client.post(path, json={"spec": {**spec, **change}})
        assert (answer.status_code, answer.json()["field"]) == (422, field)
    for change, field, words in (
        ({"betta": 1}, "spec.betta", "There is no such field"),
        ({"beta": -1}, "spec.beta", "greater than"),
        ({"optimization": {"steps": 0}}, "spec.optimization.steps", "greater than"),
        ({"weights": {"kind": "lora", "rank": 0}}, "spec.weights.rank", "greater than"),
        ({"weights": {"kind": "magic"}}, "spec.weights", "“magic” is none of"),
        ({"method": "magic"}, "spec", "“magic” is none of sft"),
    ):
        refused = client.post(path, json={"spec": {**spec, **change}})
        problem = refused.json()
        assert (refused.status_code, problem["field"]) == (422, field), problem
        assert words in problem["detail"]
        assert problem["remedy"]
    del spec["dataset"]
    assert client.post(path, json={"spec": spec}).json()["field"] == "spec.dataset"
    components = [{"kind": "number", "column": "answer"}, {"kind": "pattern", "pattern": "("}]
    grpo = {"method": "grpo", "base_model": 1, "dataset": 1, "rewards": {"components": components}}
    problem = client.post(path, json={"spec": grpo}).json()
    assert problem["field"] == "spec.rewards.components[1].pattern"
    assert "No regular expression" in problem["detail"]
    components[1] = {"kind": "pattern", "pattern": "x", "name": "number"}
    problem = client.post(path, json={"spec": grpo}).json()
    assert problem["field"] == "spec.rewards.components[1].name"
    components[1] = {"kind": "pattern", "pattern": "x", "only_if": "later"}
    assert client.post(path, json={"spec": grpo}).json()["field"] == "spec.rewards.components[1].only_if"
    del components[1]
    problem = client.post(path, json={"spec": {**grpo, "group_size": 7}}).json()
    assert problem["field"] == "spec.group_size"
    assert "multiple of the group size" in problem["detail"]


def test_pages_of_a_list(sessions: Sessions, make_client: MakeClient, engineer: Actor, material: Material) -> None:
    ids = [submit(sessions, engineer, material) for _ in range(5)]
    client, path = make_client(engineer), f"/api/v1/projects/{material.project_id}/runs"
    seen, after = [], None
    while True:
        page = client.get(path, params={"limit": 2, **({"after": after} if after else {})}).json()
        seen += [run["id"] for run in page["items"]]
        after = page["next"]
        if after is None:
            break
    assert seen == ids[::-1]


def test_outsiders_see_nothing(
    sessions: Sessions, make_client: MakeClient, engineer: Actor, material: Material
) -> None:
    run_id = submit(sessions, engineer, material)
    for what in ("", "/events", "/metrics", "/completions", "/log", "/checkpoints"):
        assert make_client("outsider").get(f"/api/v1/runs/{run_id}{what}").status_code in (403, 404)
        assert make_client("annotator").get(f"/api/v1/runs/{run_id}{what}").status_code == 403
    assert make_client("viewer").post(f"/api/v1/runs/{run_id}/cancel").status_code == 403


def test_stream_catches_up_from_any_event(
    sessions: Sessions, make_client: MakeClient, engineer: Actor, material: Material
) -> None:
    run_id = finished(sessions, engineer, material)
    client = make_client(engineer)
    whole = heard(client, run_id)
    told = [line for line in whole if line[1] != "run"]
    assert [number for number, _, _ in told] == list(range(1, len(told) + 1))
    assert [data["step"] for _, event, data in told if event == "metrics"] == list(range(1, 21))
    assert next(data for _, event, data in told if event == "metrics" and data["step"] == 3)["values"] == {
        "loss": "nan"
    }
    for cut in (1, 7, len(told) - 1):
        rest = [line for line in heard(client, run_id, Last_Event_ID=str(cut)) if line[1] != "run"]
        assert rest == told[cut:]
    assert whole[-1][1] == "run"
    assert whole[-1][2]["state"] == "succeeded"
    # everything but metrics is a line of the log, under its kind; who begins says after which step
    lines = [data for _, event, data in told if event != "metrics"]
    with sessions() as session:
        assert readout.log_length(session, run_id, told[-1][0]) == len(lines)
        assert readout.log_length(session, run_id, told[0][0]) == 1
    assert all(data["text"] for data in lines)
    assert [data["step"] for data in lines if data["kind"] == "completions"] == [20]
    assert [data["first_step"] for data in lines if data["kind"] == "started"] == [0]
    assert {data["kind"] for data in lines} == {"state", "started", "completions", "checkpoint"}


def test_what_can_be_read(sessions: Sessions, make_client: MakeClient, engineer: Actor, material: Material) -> None:
    run_id = finished(sessions, engineer, material)
    client = make_client("viewer")
    series = client.get(f"/api/v1/runs/{run_id}/metrics", params={"keys": "loss,none", "points": 500}).json()["series"]
    assert list(series) == ["loss"]
    assert series["loss"]["values"][:4] == [1.0, 0.5, "nan", 0.25]
    assert client.get(f"/api/v1/runs/{run_id}/completions").json()["items"][0]["completion"] == "b"
    assert client.get(f"/api/v1/runs/{run_id}/checkpoints").json()["items"][0]["step"] == 20
    assert "Training begins" in client.get(f"/api/v1/runs/{run_id}/log").text
    assert client.get("/api/v1/workers").json()["items"][0]["name"] == "gpu-1"
    assert "beta" in client.get("/api/v1/specs/dpo").json()["properties"]
    assert client.get("/api/v1/specs/alchemy").status_code == 404


def test_several_seeds_over_rest(make_client: MakeClient, engineer: Actor, material: Material) -> None:
    client = make_client(engineer)
    body: dict[str, Any] = {"spec": material.spec().model_dump(mode="json"), "seeds": 2, "name": "twice"}
    path = f"/api/v1/projects/{material.project_id}/runs"
    made = client.post(f"{path}/seeds", json=body)
    assert made.status_code == 201
    assert [(run["name"], run["spec"]["seed"]) for run in made.json()["items"]] == [
        ("twice, seed 0", 0),
        ("twice, seed 1", 1),
    ]
    refused = client.post(f"{path}/seeds", json=body | {"seeds": 9})
    assert (refused.status_code, refused.json()["field"]) == (422, "seeds")
    body["spec"]["dataset"] = 999
    assert client.post(f"{path}/seeds", json=body).json()["field"] == "dataset"
    assert len(client.get(path).json()["items"]) == 2


def test_a_run_downloads_as_a_script(
    make_client: MakeClient, sessions: Sessions, make_actor: MakeActor, engineer: Actor, material: Material
) -> None:
    run_id = finished(sessions, engineer, material)
    for path in (f"/api/v1/runs/{run_id}/script", f"/runs/{run_id}/script.py"):
        answer = make_client(make_actor("viewer")).get(path)
        assert answer.status_code == 200
        assert answer.headers["content-disposition"] == f'attachment; filename="run-{run_id}-dpo.py"'
        assert answer.headers["content-type"].startswith("text/x-python")
        compile(answer.text, "run.py", "exec")
    spread = submit(sessions, engineer, material, devices={"kind": "data_parallel", "processes": 2})
    refused = make_client(make_actor("viewer")).get(f"/api/v1/runs/{spread}/script")
    assert refused.status_code == 409
    assert "one device" in refused.json()["detail"]


def test_the_schema_tells_defaults_that_are_made(make_client: MakeClient, engineer: Actor) -> None:
    schema = make_client(engineer).get("/api/v1/specs/grpo").json()
    assert schema["properties"]["kl"]["default"] == {
        "beta": {"kind": "fixed", "beta": 0.0},
        "place": "loss",
        "estimator": "k3",
    }
    assert schema["$defs"]["TagFormat"]["properties"]["tags"]["default"] == ["think", "answer"]
