from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from backend.datasets.rows import RowType
from backend.runs.specs import GRPOSpec, Launch, ModelFolder
from backend.runs.specs.rewards import Cautious, LengthTerm, Mean, Minimum, ProcessScore, RewardModelScore, Rewards
from tests.worker.running import BASE
from worker import networks, scoring
from worker.encoding import Encoder, Pair
from worker.report import SpecCannotWork
from worker.rewards import Composition, Rollout
from worker.rewards.models import Model

QUESTION = [{"role": "user", "content": "What is the best fruit?"}]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return networks.load_tokenizer(BASE)


@pytest.fixture(scope="module")
def judges(tmp_path_factory, tokenizer) -> dict[int, ModelFolder]:
    """Reward models 1 to 3, which differ by the seed of their heads, and a process reward model, 4."""
    folders = {}
    for number in (1, 2, 3, 4):
        torch.manual_seed(number)
        steps = number == 4
        model = networks.load(BASE, task="TOKEN_CLS", heads=2) if steps else networks.load(BASE, task="SEQ_CLS")
        folder = tmp_path_factory.mktemp(f"judge-{number}")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if steps:
            scoring.write_meaning(scoring.StepsMeaning(separator="\n", reduce="minimum"), folder)
        folders[number] = ModelFolder(folder=folder)
    return folders


@pytest.fixture
def compose(tmp_path, judges):
    def make(*components, **more):
        spec = GRPOSpec(base_model=1, dataset=1, rewards=Rewards(components=list(components)))
        launch = Launch(
            spec=spec,
            folder=tmp_path,
            base_model=BASE,
            rows=tmp_path / "rows.parquet",
            row_type=RowType.PROMPT_ONLY,
            models=judges,
        )
        return Composition(spec.rewards, launch, max_new_tokens=32, **more)

    return make


def write(tokenizer, text, *, ended=True, prompt=QUESTION) -> Rollout:
    """A completion as a policy with the base model's words would have written it."""
    pair = Encoder(tokenizer, 1000).pairs([prompt], [[{"role": "assistant", "content": text}]], check_end=False)[0]
    end = pair.completion.index(tokenizer.eos_token_id)
    ids = pair.completion[: end + 1 if ended else end]
    return Rollout(prompt=prompt, completion=text, prompt_ids=pair.prompt, completion_ids=ids, ended=ended)


def test_an_ensemble_agrees_as_its_spec_says_and_tells_how_far_it_disagrees(compose, tokenizer):
    rollouts = [write(tokenizer, text) for text in ("an apple", "a stone", "an apple")]
    with compose(
        RewardModelScore(name="one", models=[1]),
        RewardModelScore(name="mean", models=[1, 2, 3]),
        RewardModelScore(name="worst", models=[1, 2, 3], agreement=Minimum()),
        RewardModelScore(name="cautious", models=[1, 2, 3], agreement=Cautious(penalty=2)),
        *(RewardModelScore(name=f"member{i}", models=[i], weight=0) for i in (2, 3)),
    ) as composition:
        state = torch.random.get_rng_state()
        scores = composition.score(rollouts)
        assert torch.equal(torch.random.get_rng_state(), state)
    for i in range(3):
        members = [scores.components[name][i] for name in ("one", "member2", "member3")]
        mean = sum(members) / 3
        deviation = (sum((score - mean) ** 2 for score in members) / 3) ** 0.5
        assert deviation > 1e-3
        assert scores.components["mean"][i] == pytest.approx(mean)
        assert scores.components["worst"][i] == min(members)
        assert scores.components["cautious"][i] == pytest.approx(mean - 2 * deviation)
        assert scores.extras["mean/disagreement"][i] == pytest.approx(deviation)
    assert "one/disagreement" not in scores.extras
    assert scores.components["one"][0] == pytest.approx(scores.components["one"][2], abs=1e-5)
    assert scores.components["one"][0] != pytest.approx(scores.components["one"][1], abs=1e-3)


def test_a_finished_completion_is_read_as_in_training_and_a_cut_one_does_not_look_finished(judges, tokenizer):
    model = Model(scoring.load_scorer(judges[1].folder), tokenizer.get_vocab())
    trained = Encoder(tokenizer, 1000).pairs([QUESTION], [[{"role": "assistant", "content": "an apple"}]])[0]
    assert model.read(write(tokenizer, "an apple")) == trained
    cut = model.read(write(tokenizer, "an apple", ended=False))
    assert tokenizer.eos_token_id in trained.completion
    assert tokenizer.eos_token_id not in cut.completion
    assert cut.completion == trained.completion[: len(cut.completion)]


def test_what_a_template_writes_after_the_end_is_read_too(judges):
    """ChatML ends a turn with the end token and a line break; the model was trained to score at the line break."""
    scorer = scoring.load_scorer(judges[1].folder)
    scorer.tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    trained = Encoder(scorer.tokenizer, 1000).pairs([QUESTION], [[{"role": "assistant", "content": "an apple"}]])[0]
    assert trained.completion[-1] != scorer.tokenizer.eos_token_id
    finished = write(scorer.tokenizer, "an apple")
    assert finished.completion_ids[-1] == scorer.tokenizer.eos_token_id  # the policy stops there
    model = Model(scorer, scorer.tokenizer.get_vocab())
    assert model.read(finished) == trained
    assert model.read(write(scorer.tokenizer, "an apple", ended=False)).completion == trained.completion[:-2]


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("prompt", [QUESTION, "The best fruit is"])
def test_a_model_with_other_words_reads_the_text_anew(judges, tokenizer, prompt, ended):
    other = Model(scoring.load_scorer(judges[1].folder), words={"another": 0})
    ids = Rollout(prompt=prompt, completion=" an apple", prompt_ids=[999], completion_ids=[998], ended=ended)
    read = other.read(ids)
    completion: Any = " an apple" if isinstance(prompt, str) else [{"role": "assistant", "content": " an apple"}]
    trained = Encoder(tokenizer, 1000).pairs([prompt], [completion])[0]
    assert read.prompt == trained.prompt
    assert read.completion == trained.completion[: len(read.completion)]
    assert (tokenizer.eos_token_id in read.completion) is ended
    assert tokenizer.decode(read.completion, skip_special_tokens=True).strip() == "an apple"


def test_steps_are_reduced_as_the_spec_says_and_no_step_is_no_score(compose, tokenizer):
    rollouts = [write(tokenizer, "red\nblue\ngreen"), write(tokenizer, "  ")]
    with compose(
        *(ProcessScore(name=how, model=4, reduce=how) for how in ("minimum", "product", "last"))
    ) as composition:
        scores = composition.score(rollouts)
    minimum, product, last = (scores.components[how][0] for how in ("minimum", "product", "last"))
    assert 0 < product < minimum <= last < 1
    assert [scores.components[how][1] for how in ("minimum", "product", "last")] == [None] * 3
    assert scores.total[1] != scores.total[1]


class Fixed(NamedTuple):
    """A model in memory that always says the same."""

    tokenizer: Any
    says: float | None

    def scores(self, texts: list[Pair], batch_size: int = 32) -> list[scoring.Verdict]:
        return [scoring.Verdict(self.says, {}, []) for _ in texts]


@pytest.mark.parametrize("says", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("agreement", [Mean(), Minimum(), Cautious(penalty=2)])
def test_a_member_that_says_no_number_leaves_the_completion_unscored(compose, tokenizer, says, agreement):
    ready = {7: Fixed(tokenizer, 2.0), 8: Fixed(tokenizer, says)}
    with compose(RewardModelScore(models=[7, 8], agreement=agreement), scorers=ready) as composition:
        scores = composition.score([write(tokenizer, "x")])
    assert scores.components["reward_model"] == [None]
    assert scores.extras["reward_model/disagreement"] == [None]


class Steps(scoring.StepScorer):
    """A process reward model in memory that says NaN of the second step."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def scores(self, texts: Sequence[Pair], batch_size: int = 32) -> list[scoring.Verdict]:
        return [scoring.Verdict(0.5, {}, [0.5, float("nan")]) for _ in texts]


@pytest.mark.parametrize("reduce", ["minimum", "product", "last"])
def test_a_step_that_is_no_number_leaves_the_completion_unscored(compose, tokenizer, reduce):
    with compose(ProcessScore(model=7, reduce=reduce), scorers={7: Steps(tokenizer)}) as composition:
        assert composition.score([write(tokenizer, "x")]).components == {"process_reward": [None]}


def test_models_in_memory_are_not_loaded_again_and_one_silent_member_silences_the_ensemble(compose, tokenizer):
    rollouts = [write(tokenizer, "x")]
    ready = {7: Fixed(tokenizer, 2.0), 8: Fixed(tokenizer, 4.0), 9: Fixed(tokenizer, None)}
    with compose(RewardModelScore(models=[7, 8]), LengthTerm(weight=0), scorers=ready) as composition:
        assert composition.score(rollouts).total == [3]
    with compose(RewardModelScore(models=[7, 9]), LengthTerm(), scorers=ready) as composition:
        scores = composition.score(rollouts)
    assert scores.components["reward_model"] == [None]
    assert scores.extras["reward_model/disagreement"] == [None]
    assert "rewards/reward_model/mean" not in scores.figures()
    assert scores.figures()["rewards/unscored"] == 1


@pytest.mark.parametrize(
    ("component", "said"),
    [
        (RewardModelScore(models=[12]), r"rewards\.components\[0\]\.models: the model 12 is not there"),
        (ProcessScore(model=1), r"rewards\.components\[0\]\.model: the model does not score steps"),
    ],
)
def test_models_that_cannot_score_are_refused_with_the_field(compose, component, said):
    with pytest.raises(SpecCannotWork, match=said):
        compose(component)


def test_a_language_model_is_no_reward_model(compose, judges, tmp_path):
    judges = {**judges, 5: ModelFolder(folder=Path(BASE))}
    spec = GRPOSpec(base_model=1, dataset=1, rewards=Rewards(components=[RewardModelScore(models=[5])]))
    launch = Launch(
        spec=spec, folder=tmp_path, base_model=BASE, rows=tmp_path / "x", row_type=RowType.PROMPT_ONLY, models=judges
    )
    with pytest.raises(SpecCannotWork, match=r"rewards\.components\[0\]\.models: the model does not score"):
        Composition(spec.rewards, launch, max_new_tokens=8)
