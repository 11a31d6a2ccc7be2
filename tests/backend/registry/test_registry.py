"""Models: what is taken, what is refused before anything is stored, and lineage both ways."""

import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.artifacts import Artifacts
from backend.datasets import service as datasets
from backend.datasets.rows import RowType
from backend.db import Sessions, unit_of_work
from backend.projects.service import ProjectName
from backend.registry import lineage, service
from backend.runs.uses import tell_runs, version_uses
from tests.conftest import MakeActor, MakeClient


def safetensors(**tensors: tuple[str, list[int]]) -> bytes:
    sizes = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8}
    header, at = dict[str, Any](), 0
    for name, (dtype, shape) in tensors.items():
        size = sizes[dtype]
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + b"\0" * at


WEIGHTS = safetensors(embed=("F32", [10, 4]), head=("F32", [4, 10]), scale=("BF16", [4]))
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"]}).encode()
MODEL = {
    "model.safetensors": WEIGHTS,
    "config.json": CONFIG,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ x }}",
}


def send(client: TestClient, project: ProjectName, files: dict[str, bytes], **data: Any) -> Any:
    sent = [("files", (name, content)) for name, content in files.items()]
    return client.post(f"/api/v1/projects/{project.id}/models", files=sent, data={"name": "tiny", **data})


def folder_of(tmp_path: Path, files: dict[str, bytes]) -> Path:
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_files_become_a_model_and_come_back_as_a_tar(make_client: MakeClient, project: ProjectName) -> None:
    client = make_client("engineer")
    made = send(client, project, MODEL, note="written by a test").json()
    assert (made["parameters"], made["dtype"], made["architecture"]) == (84, "F32", "LlamaForCausalLM")
    assert client.get(f"/api/v1/models/{made['id']}").json() == made
    assert [model["id"] for model in client.get(f"/api/v1/projects/{project.id}/models").json()["items"]] == [
        made["id"]
    ]
    with tarfile.open(fileobj=io.BytesIO(client.get(f"/api/v1/models/{made['id']}/download").content)) as tar:
        found = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        assert {name: file.read() for name, file in found.items() if file} == MODEL


HOSTILE: dict[str, dict[str, bytes]] = {
    "a pickle": {**MODEL, "pytorch_model.bin": b"\x80\x04."},
    "a checkpoint": {**MODEL, "optimizer.pt": b"x"},
    "code": {**MODEL, "modeling_evil.py": b"import os"},
    "auto_map": {**MODEL, "config.json": json.dumps({"auto_map": {"AutoModel": "evil.Evil"}}).encode()},
    "auto_map in the tokenizer": {
        **MODEL,
        "tokenizer_config.json": json.dumps({"a": [{"auto_map": {"AutoTokenizer": "e"}}]}).encode(),
    },
    "auto_map in escapes": {**MODEL, "config.json": b'{"\\u0061uto_map": {"AutoModel": "evil.Evil"}}'},
    "no weights": {"config.json": CONFIG},
    "no config": {"model.safetensors": WEIGHTS},
    "config that is a list": {**MODEL, "config.json": b"[]"},
    "config that is nested": {**MODEL, "config.json": b"[" * 100_000},
    "cut weights": {**MODEL, "model.safetensors": WEIGHTS[:-1]},
    "weights with more behind": {**MODEL, "model.safetensors": WEIGHTS + b"\0"},
    "empty weights": {**MODEL, "model.safetensors": b""},
    "a header of 2^63 bytes": {**MODEL, "model.safetensors": struct.pack("<Q", 2**63) + b"{}"},
    "a header that is no JSON": {**MODEL, "model.safetensors": struct.pack("<Q", 4) + b"oops"},
    "tensors that overlap": {
        **MODEL,
        "model.safetensors": struct.pack("<Q", 111)
        + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(
            111
        )
        + b"\0" * 4,
    },
    "a way out": {**MODEL, "../../evil.json": b"{}"},
    "an absolute way": {**MODEL, "/etc/evil.json": b"{}"},
    "a way out of Windows": {**MODEL, "..\\evil.json": b"{}"},
    "a strange file": {**MODEL, "evil.exe": b"MZ"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_could_run_code_is_refused_and_nothing_stored(
    make_client: MakeClient, project: ProjectName, tmp_path: Path, name: str
) -> None:
    client = make_client("engineer")
    answer = send(client, project, HOSTILE[name])
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"] == "/problems/unsafe-model"
    assert client.get(f"/api/v1/projects/{project.id}/models").json()["items"] == []
    assert [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()] == []


def test_who_may_what(make_client: MakeClient, project: ProjectName) -> None:
    made = send(make_client("engineer"), project, MODEL).json()
    for role, see, make in (("viewer", 200, 403), ("annotator", 403, 403), ("outsider", 403, 403)):
        client = make_client(role)
        paths = [f"/api/v1/models/{made['id']}{what}" for what in ("", "/lineage", "/download")]
        paths += [f"/api/v1/projects/{project.id}/models", f"/projects/{project.id}/models", f"/models/{made['id']}"]
        assert {path: client.get(path).status_code for path in paths} == dict.fromkeys(paths, see)
        assert send(client, project, MODEL).status_code == make


def test_an_adapter_names_what_it_changes(make_client: MakeClient, project: ProjectName) -> None:
    client = make_client("engineer")
    base = send(client, project, MODEL).json()["id"]
    adapter = {"adapter_model.safetensors": WEIGHTS, "adapter_config.json": b'{"peft_type": "LORA"}'}
    assert send(client, project, adapter).json()["field"] == "adapter_of_id"
    assert send(client, project, MODEL, adapter_of_id=base).json()["field"] == "adapter_of_id"
    assert send(client, project, adapter, adapter_of_id=base + 99).status_code == 404
    made = send(client, project, adapter, adapter_of_id=base).json()
    assert (made["adapter_of_id"], made["architecture"]) == (base, "LORA")
    found = client.get(f"/api/v1/models/{made['id']}/lineage").json()
    assert found["edges"] == [[f"model:{base}", f"model:{made['id']}"]]


def test_lineage_leads_from_judgments_to_child_runs_and_back(
    session: Session, engineer: Actor, project: ProjectName, artifacts: Artifacts, tmp_path: Path
) -> None:
    base = service.register_folder(session, project.id, folder_of(tmp_path, MODEL), "base", note="by hand")
    dataset = datasets.create_dataset(session, engineer, project.id, "pairs")
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    origin = {"kind": "labeling", "labeling_session_id": 7}
    version = datasets.create_version(session, dataset.id, rows, RowType.PREFERENCE, origin=origin, created_by=None)
    models, runs = [base], []
    for number, method in enumerate(("sft", "dpo"), 1):
        run = session.scalar(
            text(
                "insert into run (project_id, name, method, spec, base_model_id, dataset_version_id, request_sha256, total_steps)"
                " values (:p, :m, :m, '{}', :b, :v, :h, 10) returning id"
            ),
            {"p": project.id, "m": method, "b": models[-1].id, "v": version.id, "h": str(number)},
        )
        runs.append(run)
        manifest = artifacts.put_folder(tmp_path / "model")
        models.append(
            service.register_model(
                session, project_id=project.id, name=method, kind="language", manifest=manifest, run_id=run, step=10
            )
        )
    first, last = models[1], models[2]
    found = lineage.trace(session, engineer, first.id, tell_runs)
    behind = {("model", base.id), ("run", runs[0]), ("data", version.id), ("votes", 7)}
    assert found.ancestors == behind
    assert set(found.nodes) == behind | {("model", first.id), ("run", runs[1]), ("model", last.id)}
    assert (("votes", 7), ("data", version.id)) in found.edges
    assert (("model", first.id), ("run", runs[1])) in found.edges
    # causes stand left of what they led to
    assert all(found.nodes[a].x < found.nodes[b].x for a, b in found.edges)
    back = lineage.trace(session, engineer, last.id, tell_runs)
    assert back.ancestors >= behind | {("model", first.id), ("run", runs[1])}
    uses = version_uses(session, engineer, [version.id])
    assert [use.href for use in uses[version.id]] == [f"/runs/{runs[1]}", f"/runs/{runs[0]}"]
    assert [model.id for model in service.chain_of(session, last)] == [last.id]


def test_pages(make_client: MakeClient, project: ProjectName) -> None:
    browser = make_client("engineer", browser=True)
    assert "No models yet" in browser.get(f"/projects/{project.id}/models").text
    made = send(make_client("engineer"), project, MODEL, note="<script>alert(1)</script>").json()
    for path in (
        f"/projects/{project.id}/models",
        f"/projects/{project.id}/models?kind=reward",
        f"/models/{made['id']}",
    ):
        page = browser.get(path)
        assert page.status_code == 200
        assert "<script>alert" not in page.text


def test_foreign_models_are_not_there(
    sessions: Sessions, make_actor: MakeActor, project: ProjectName, tmp_path: Path
) -> None:
    with unit_of_work(sessions) as session:
        made = service.register_folder(session, project.id, folder_of(tmp_path, MODEL), "base")
        with pytest.raises(service.NoSuchModel):
            service.get_model(session, make_actor("engineer"), made.id + 1)
        assert service.get_model(session, make_actor("viewer"), made.id) is made
