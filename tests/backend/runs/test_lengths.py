"""What cannot work with a model's tokenizer is refused before it queues; what might work is not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.accounts.actors import Actor
from backend.datasets import service as datasets
from backend.datasets.rows import Row, RowType
from backend.db import Sessions, unit_of_work
from backend.demo import seed
from backend.registry import service as registry
from backend.registry.tokenizing import tokenizing_of
from backend.runs import checks, forms, lengths, service, specs
from tests.backend.runs.material import Material
from tests.conftest import MakeClient

BASE = Path(seed.__file__).with_name("base")
LONG = "Please write about the sea. " * 20


class Bench:
    """The demo's base model with changed files, and rows."""

    def __init__(self, sessions: Sessions, actor: Actor, material: Material, folder: Path) -> None:
        self.sessions, self.actor, self.project_id, self.folder = sessions, actor, material.project_id, folder

    def model(self, **changes: Callable[[Any], Any] | None) -> int:
        """The base with each named JSON file changed; ``None`` takes a file away."""
        folder = self.folder / f"model-{len(list(self.folder.iterdir()))}"
        shutil.copytree(BASE, folder)
        for name, change in changes.items():
            path = folder / ("chat_template.jinja" if name == "template" else f"{name}.json")
            if change is None:
                path.unlink()
            elif name == "template":
                path.write_text(change(path.read_text()))
            else:
                path.write_text(json.dumps(change(json.loads(path.read_text()))))
        with unit_of_work(self.sessions) as session:
            return registry.register_folder(session, self.project_id, folder, folder.name).id

    def rows(self, row_type: RowType, *rows: Row) -> int:
        with unit_of_work(self.sessions) as session:
            dataset = datasets.create_dataset(session, self.actor, self.project_id, f"rows of {len(str(rows))}")
            made = datasets.create_version(
                session, dataset.id, rows, row_type, origin={"kind": "test"}, created_by=None
            )
            return made.id

    def said(self, method: str, model: int, rows: int, **more: Any) -> tuple[str, str] | None:
        """(field, sentence and remedy) of the refusal; ``None`` if the run is queued."""
        spec = specs.SPEC.validate_python({"method": method, "base_model": model, "dataset": rows, **more})
        with self.sessions() as session:
            try:
                service.submit_run(session, self.actor, self.project_id, spec)
            except checks.InvalidSpec as error:
                return error.fields["field"], f"{error.detail} {error.remedy}"
        return None


@pytest.fixture
def bench(sessions: Sessions, engineer: Actor, material: Material, tmp_path: Path) -> Bench:
    return Bench(sessions, engineer, material, tmp_path)


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


PLAIN = {"prompt": "Say hello.", "completion": " Hello."}
TALK = {"prompt": [_said("user", "Say hello.")], "completion": [_said("assistant", "Hello.")]}


def test_a_tokenizer_must_fit_its_model(bench: Bench) -> None:
    rows = bench.rows(RowType.PROMPT_COMPLETION, PLAIN, PLAIN | {"prompt": "Say yes."})
    assert bench.said("sft", bench.model(), rows, max_length=64) is None
    # the demo's tokenizer has ids 0 to 639: a table of 639 rows lacks the last
    small = bench.said("sft", bench.model(config=lambda known: known | {"vocab_size": 639}), rows, max_length=64)
    assert small is not None
    assert small[0] == "base_model"
    assert "token 639, but the model knows only 639 tokens" in small[1]
    endless = bench.said("sft", bench.model(tokenizer_config=lambda known: known | {"eos_token": None}), rows)
    assert endless is not None
    assert endless[0] == "base_model"
    assert "no end token" in endless[1]
    narrow = bench.model(config=lambda known: known | {"max_position_embeddings": 32})
    assert bench.said("sft", narrow, rows, max_length=32) is None
    far = bench.said("sft", narrow, rows, max_length=33)
    assert far is not None
    assert far[0] == "max_length"
    assert "Set it to 32 or less." in far[1]


def test_a_template_must_end_what_it_writes(bench: Bench) -> None:
    talk = bench.rows(RowType.PROMPT_COMPLETION, TALK, TALK)
    plain = bench.rows(RowType.PROMPT_COMPLETION, PLAIN, PLAIN)
    prompts = bench.rows(RowType.PROMPT_ONLY, {"prompt": TALK["prompt"]})
    endless = bench.model(template=lambda known: known.replace("<|im_end|>", "[/END]"))
    online = {"rewards": {"components": [{"kind": "length"}]}, "max_length": 128, "sampling": {"max_new_tokens": 8}}
    for method, rows, more in (("sft", talk, {}), ("grpo", prompts, online)):
        refused = bench.said(method, endless, rows, **({"max_length": 64} | more))
        assert refused is not None, method
        assert refused[0] == "base_model"
        assert "<|im_end|>" in refused[1]
    assert bench.said("sft", endless, plain, max_length=64) is None  # no template is used for plain text
    by_variable = bench.model(template=lambda known: known.replace("<|im_end|>", "{{ eos_token }}"))
    assert bench.said("sft", by_variable, talk, max_length=64) is None
    # what is written may end with any token of the generation config; what is learned from, with the tokenizer's
    other = bench.model(
        template=lambda known: known.replace("<|im_end|>", "<|pad|>"),
        generation_config=lambda known: known | {"eos_token_id": [0, 1, 2, 3]},
    )
    assert bench.said("sft", other, talk, max_length=64) is not None
    assert bench.said("grpo", other, prompts, **online) is None


def test_conversations_need_a_template_and_replies_their_marks(bench: Bench) -> None:
    said = [_said("user", "Say hello."), _said("assistant", "Hello.")]
    rows = bench.rows(RowType.LANGUAGE_MODELING, {"messages": said}, {"messages": said})
    silent = bench.said("sft", bench.model(template=None), rows, max_length=64)
    assert silent is not None
    assert silent[0] == "base_model"
    assert "no chat template" in silent[1]
    unmarked = bench.model(template=lambda _: "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    refused = bench.said("sft", unmarked, rows, max_length=64, completion_only=True)
    assert refused is not None
    assert refused[0] == "completion_only"
    assert bench.said("sft", unmarked, rows, max_length=64, completion_only=False) is None
    assert bench.said("sft", bench.model(), rows, max_length=64, completion_only=True) is None


def test_something_must_be_left_to_learn_from(bench: Bench) -> None:
    model, pair = bench.model(), {"chosen": " Yes.", "rejected": " No."}
    with bench.sessions() as session:
        (tokens,) = tokenizing_of(session, registry.get_model(session, bench.actor, model)).lengths([LONG]) or []
    assert tokens > 100
    long = bench.rows(RowType.PREFERENCE, {"prompt": LONG, **pair}, {"prompt": LONG + "And the sky.", **pair})
    for method in ("dpo", "reward", "kto", "orpo"):
        refused = bench.said(method, model, long, max_length=64)
        assert refused is not None, method
        assert refused[0] == "max_length"
        assert f"the shortest prompt has {tokens}" in refused[1]
    assert bench.said("dpo", model, long, max_length=tokens + 8) is None
    # one row that fits is enough, wherever it stands
    late = bench.rows(
        RowType.PREFERENCE, *[{"prompt": LONG + str(n), **pair} for n in range(600)], {"prompt": "?", **pair}
    )
    assert bench.said("dpo", model, late, max_length=64) is None
    # whole texts are learned from their first token on; prompts of online methods are cut on their left
    whole = bench.rows(RowType.PROMPT_COMPLETION, {"prompt": LONG, "completion": " Yes."}, PLAIN | {"prompt": LONG})
    assert bench.said("sft", model, whole, max_length=64, completion_only=False) is None
    assert bench.said("sft", model, whole, max_length=64, completion_only=True) is not None


def test_lengths_are_counted_in_the_models_tokens(bench: Bench, make_client: MakeClient, material: Material) -> None:
    model = bench.model()
    rows = bench.rows(RowType.PREFERENCE, *({"prompt": "a" * n, "chosen": " b", "rejected": " b b"} for n in (3, 1, 2)))
    with bench.sessions() as session:
        count = tokenizing_of(session, registry.get_model(session, bench.actor, model)).lengths
        found = lengths.sample(session, bench.actor, model, rows)
    prompts, (answer,) = count(["a", "aa", "aaa"]), count([" b b"]) or []
    assert prompts is not None
    assert found == lengths.Lengths(sorted(n + answer for n in prompts), sorted(prompts))
    client = make_client(bench.actor)
    answered = client.get(f"/api/v1/versions/{rows}/lengths", params={"model": model}).json()
    assert answered == {"rows": found.rows, "prompts": found.prompts}
    without = client.get(f"/api/v1/versions/{rows}/lengths", params={"model": material.model_id})  # no tokenizer.json
    assert (without.status_code, without.json()) == (200, None)
    assert client.get(f"/api/v1/versions/{rows}/lengths", params={"model": 10**9}).status_code == 404


def _bomb(tokenizer: dict[str, Any]) -> dict[str, Any]:
    return tokenizer | {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 1_000_000}}


def _speechless(tokenizer: dict[str, Any]) -> dict[str, Any]:
    return tokenizer | {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}}


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nothing": lambda _: None,
    "empty": lambda _: {},
    "a list": lambda _: [1],
    "no vocabulary": lambda _: {"model": {}},
    "a list as a piece": lambda known: known | {"model": {"type": "Unigram", "vocab": [[["x"], 0.0]], "unk_id": 0}},
    "a number as an added token": lambda known: known | {"added_tokens": [7]},
    "no word for the unknown": _speechless,
    "panics": lambda known: known | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a text a million times as long": _bomb,
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_tokenizer_is_left_to_the_worker(bench: Bench, make_client: MakeClient, broken: str) -> None:
    model = bench.model(tokenizer=BROKEN[broken])
    rows = bench.rows(RowType.PROMPT_COMPLETION, PLAIN | {"prompt": "a" * 100_000}, PLAIN | {"prompt": "b" * 100_000})
    assert bench.said("sft", model, rows, max_length=64) is None
    answer = make_client(bench.actor).get(f"/api/v1/versions/{rows}/lengths", params={"model": model})
    assert (answer.status_code, answer.json()) == (200, None)


def test_a_model_that_never_ends_is_offered_last_and_says_so(bench: Bench) -> None:
    mute = bench.model(tokenizer_config=lambda known: known | {"eos_token": None})
    open_ended = bench.model(template=lambda _: "{{ messages[0]['content'] }}")
    good = bench.model()
    for method, wrong in (("sft", [mute, open_ended]), ("grpo", [mute])):
        with bench.sessions() as session:
            offered = forms.base_models(session, bench.actor, bench.project_id, method)
        ids = [model["id"] for model in offered]
        assert set(ids[-len(wrong) :]) == set(wrong), method
        assert good in ids[: -len(wrong)]
        assert [model["id"] for model in offered if "cannot" in model["label"]] == ids[-len(wrong) :]
    assert "no end token" in next(model["label"] for model in offered if model["id"] == mute)
