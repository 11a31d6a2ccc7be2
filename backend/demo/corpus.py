"""The little world of the demo project: two-digit addition and customer support, generated, never downloaded.

The mix is deliberate. The base model learns from text in which half of the sums are worked out and the others are
careless guesses, and most replies to customers are rude. So before any training on preferences it is careless and
rude, and every method has honest room to improve. Pairs of numbers and (item, problem) pairs that are *held out* occur
in no training row of any kind. Everything is seeded: the same call gives the same rows on every machine.

Pure Python: the seeding of the demo project and the recipes' tests read it without torch.
"""

import random
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from backend.datasets.rows import Row

Side = Literal["train", "held_out"]

# --- the words ---------------------------------------------------------------------------------------------------

_SUMS = ("What is {a}+{b}?", "Please add {a}+{b}.", "How much is {a}+{b}?")

_ITEMS = [
    "order",
    "parcel",
    "refund",
    "laptop",
    "phone",
    "kettle",
    "jacket",
    "invoice",
    "ticket",
    "heater",
    "router",
    "printer",
    "bike",
    "lamp",
    "chair",
    "camera",
    "watch",
    "blender",
    "sofa",
    "keyboard",
]

_REMEDIES = {
    "is late": "trace the delivery",
    "is broken": "send a replacement",
    "never came": "open a search",
    "stopped working": "book a repair",
    "has the wrong color": "arrange an exchange",
    "was charged twice": "return the money",
    "lacks a part": "post the part",
    "shows an error": "look at the logs",
    "arrived damaged": "ship a new one",
    "cannot be opened": "reset the access",
}

_GREETINGS = ("Hello, my", "Hi, my", "Good morning, my", "My")

_POLITE = (
    (
        "I am sorry about your {item}.",
        "Thank you for telling us about your {item}.",
        "We understand, your {item} {problem}.",
    ),
    ("I will {remedy} right away.", "Let me {remedy} for you.", "We will gladly {remedy} today."),
    ("Thank you for your patience.", "Please ask if I can help more.", "Have a nice day."),
)
_RUDE = (
    (
        "Not my problem.",
        "So your {item} {problem}? Big deal.",
        "What do you want now?",
        "Stop whining about your {item}.",
    ),
    ("Maybe someone will {remedy}.", "Go and {remedy} yourself.", "We will {remedy} whenever."),
    ("Stop bothering us.", "Read the manual.", "Do not write again."),
)
"""The three sentences of a reply: opening, action, ending."""


class Sum(NamedTuple):
    """Two two-digit numbers to add."""

    a: int
    b: int


class Complaint(NamedTuple):
    """What a customer writes about."""

    item: str
    problem: str


Topic = Sum | Complaint


def _split(topics: Sequence[Topic], held_out: int, seed: int) -> dict[Side, list[Topic]]:
    shuffled = list(topics)
    random.Random(seed).shuffle(shuffled)
    return {"train": shuffled[held_out:], "held_out": shuffled[:held_out]}


_SUM_TOPICS = _split([Sum(a, b) for a in range(10, 100) for b in range(10, 100)], 1000, seed=1)
_COMPLAINT_TOPICS = _split([Complaint(item, problem) for item in _ITEMS for problem in _REMEDIES], 40, seed=2)


# --- prompts and completions -------------------------------------------------------------------------------------


def ask(rng: random.Random, topic: Topic) -> str:
    """What a person writes."""
    if isinstance(topic, Sum):
        return rng.choice(_SUMS).format(a=topic.a, b=topic.b)
    return f"{rng.choice(_GREETINGS)} {topic.item} {topic.problem}."


def work_out(topic: Sum) -> str:
    """The sum with its two columns and the carry, always right."""
    ones = topic.a % 10 + topic.b % 10
    carry = ones // 10
    tens = topic.a // 10 + topic.b // 10 + carry
    return (
        f"Ones: {topic.a % 10}+{topic.b % 10}={ones}. "
        f"Tens: {topic.a // 10}+{topic.b // 10}+{carry}={tens}. Answer: {topic.a + topic.b}."
    )


def guess(rng: random.Random, topic: Sum, share_right: float = 0.2) -> str:
    """A careless one-liner, off by one digit unless it is lucky."""
    answer = topic.a + topic.b
    if rng.random() >= share_right:
        answer += rng.choice((-10, -2, -1, 1, 2, 10))
    return f"Answer: {answer}."


def reply(rng: random.Random, topic: Complaint, polite_sentences: int) -> str:
    """A reply to a customer of which 0 to 3 sentences are polite."""
    polite = set(rng.sample(range(3), polite_sentences))
    sentences = (rng.choice((_POLITE if i in polite else _RUDE)[i]) for i in range(3))
    return " ".join(sentences).format(item=topic.item, problem=topic.problem, remedy=_REMEDIES[topic.problem])


# --- measures ----------------------------------------------------------------------------------------------------


def _any_of(*sentences: Sequence[str]) -> str:
    texts = [re.sub(r"\\\{\w+\\\}", "[a-z ]+", re.escape(text)) for group in sentences for text in group]
    return f"(?:{'|'.join(texts)})"


_WELL_FORMED = re.compile(" ".join(_any_of(_POLITE[i], _RUDE[i]) for i in range(3)))
_ALL_POLITE = re.compile(" ".join(_any_of(_POLITE[i]) for i in range(3)))
_ASKED = re.compile(r"(\d\d)\+(\d\d)")
_ANSWERED = re.compile(r"Answer: (\d+)\.$")


def is_well_formed(completion: str) -> bool:
    """Whether it is one opening, one action and one ending, in whatever tone: what a destroyed model loses first."""
    return _WELL_FORMED.fullmatch(completion.strip()) is not None


def is_polite(completion: str) -> bool:
    """Whether it is a well-formed reply whose three sentences are all polite."""
    return _ALL_POLITE.fullmatch(completion.strip()) is not None


def is_sum(prompt: str) -> bool:
    """Whether *prompt* asks for a sum; else it is a complaint."""
    return _ASKED.search(prompt) is not None


def answer_is_right(prompt: str, completion: str) -> bool:
    """Whether *completion* ends in the sum that *prompt* asks for."""
    asked, answered = _ASKED.search(prompt), _ANSWERED.search(completion.strip())
    return asked is not None and answered is not None and int(answered[1]) == int(asked[1]) + int(asked[2])


# --- rows --------------------------------------------------------------------------------------------------------


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _topics(rng: random.Random, count: int, share_sums: float, side: Side) -> Iterator[Topic]:
    for _ in range(count):
        yield rng.choice((_SUM_TOPICS if rng.random() < share_sums else _COMPLAINT_TOPICS)[side])


def pretraining(count: int, seed: int, side: Side = "train") -> list[Row]:
    """Prompt–completion rows the base model is made from: 60 % sums, half of them guessed; 70 % of the replies rude."""
    rng = random.Random(f"pretraining {seed}")
    rows: list[Row] = []
    for topic in _topics(rng, count, 0.6, side):
        if isinstance(topic, Sum):
            completion = work_out(topic) if rng.random() < 0.5 else guess(rng, topic)
        else:
            completion = reply(rng, topic, 3 if rng.random() < 0.3 else 0)
        rows.append({"prompt": _user(ask(rng, topic)), "completion": _assistant(completion)})
    return rows


def demonstrations(count: int, seed: int, side: Side = "train") -> list[Row]:
    """Prompt–completion rows worth imitating: sums worked out, replies polite."""
    rng = random.Random(f"demonstrations {seed}")
    return [
        {
            "prompt": _user(ask(rng, topic)),
            "completion": _assistant(work_out(topic) if isinstance(topic, Sum) else reply(rng, topic, 3)),
        }
        for topic in _topics(rng, count, 0.5, side)
    ]


def preference_pairs(count: int, seed: int, side: Side = "train", share_sums: float = 0.25) -> list[Row]:
    """Preference rows: the politer reply, the worked sum. *margin* is how much better, from 1 to 3.

    Half of the replies differ in all three sentences, the others in one or two, so a model of the preference has to
    look at every sentence.
    """
    rng = random.Random(f"preferences {seed}")
    rows: list[Row] = []
    for topic in _topics(rng, count, share_sums, side):
        prompt = ask(rng, topic)
        if isinstance(topic, Sum):
            chosen, rejected, margin = work_out(topic), guess(rng, topic), 2
        else:
            worse, better = (0, 3) if rng.random() < 0.5 else sorted(rng.sample(range(4), 2))
            chosen, rejected, margin = reply(rng, topic, better), reply(rng, topic, worse), better - worse
        rows.append(
            {
                "prompt": _user(prompt),
                "chosen": _assistant(chosen),
                "rejected": _assistant(rejected),
                "margin": float(margin),
            }
        )
    return rows


def voted_pairs(count: int, seed: int, side: Side = "train", share_sums: float = 0.25, votes: int = 4) -> list[Row]:
    """Preference rows with a *probability*: the share of annotators for the chosen side, from 1/2 (a tie) to 1.

    Each of *votes* annotators prefers the politer reply the more surely, the larger the difference: 3 to 1 for one
    sentence, 27 to 1 for three. Sums are judged like a difference of two.
    """
    rng = random.Random(f"votes {seed}")
    rows: list[Row] = []
    for row in preference_pairs(count, seed, side, share_sums):
        odds = 3 ** row.pop("margin")
        share = sum(rng.random() < odds / (1 + odds) for _ in range(votes)) / votes
        if share < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        rows.append({**row, "probability": max(share, 1 - share)})
    return rows


def thumbs(count: int, seed: int, side: Side = "train", share_sums: float = 0.25) -> list[Row]:
    """Unpaired rows: up for the worked sum and the reply that is polite throughout, down for anything less; half each."""
    rng = random.Random(f"thumbs {seed}")
    rows: list[Row] = []
    for topic in _topics(rng, count, share_sums, side):
        up = rng.random() < 0.5
        if isinstance(topic, Sum):
            completion = work_out(topic) if up else guess(rng, topic)
        else:
            completion = reply(rng, topic, 3 if up else rng.choice((0, 0, 1, 2)))
        rows.append({"prompt": _user(ask(rng, topic)), "completion": _assistant(completion), "label": up})
    return rows


def scored(count: int, seed: int, side: Side = "train") -> list[Row]:
    """Scored rows, two completions of each prompt: *politeness* of replies (polite sentences, 0 to 3), *correctness* of
    sums (0 or 1), and *detail* of both (words / 4). What an attribute does not apply to has no score of it.
    """
    rng = random.Random(f"scored {seed}")
    rows: list[Row] = []
    for topic in _topics(rng, -(-count // 2), 0.4, side):
        prompt = ask(rng, topic)
        for _ in range(2):
            scores: dict[str, float] = {}
            if isinstance(topic, Sum):
                completion = work_out(topic) if rng.random() < 0.5 else guess(rng, topic)
                scores["correctness"] = float(answer_is_right(prompt, completion))
            else:
                polite = rng.randrange(4)
                completion = reply(rng, topic, polite)
                scores["politeness"] = float(polite)
            scores["detail"] = len(completion.split()) / 4
            rows.append({"prompt": _user(prompt), "completion": _assistant(completion), "scores": scores})
    return rows[:count]


def stepwise(count: int, seed: int, side: Side = "train") -> list[Row]:
    """Stepwise rows: half of the sums guessed in one step, half worked out in three, one of which may go wrong.

    Added wrongly, a carry forgotten or made up, the answer put together wrongly: each with a chance of 1/5; what follows
    from an error is wrong, too. The steps are those of :func:`work_out`, cut at its full stops, so joined by "." they are
    what the model writes.
    """
    rng = random.Random(f"stepwise {seed}")
    rows: list[Row] = []
    for topic in _topics(rng, count, 1.0, side):
        assert isinstance(topic, Sum)
        prompt = ask(rng, topic)
        if rng.random() < 0.5:
            guessed = guess(rng, topic)
            steps, labels = [guessed.removesuffix(".")], [answer_is_right(prompt, guessed)]
        else:
            slips = [rng.random() < 0.2 for _ in range(3)]
            ones = topic.a % 10 + topic.b % 10 + (rng.choice((-2, -1, 1, 2)) if slips[0] else 0)
            carry = int(ones > 9) ^ slips[1]
            tens = topic.a // 10 + topic.b // 10 + carry
            answer = 10 * tens + ones % 10 + (rng.choice((-10, -1, 1, 10)) if slips[2] else 0)
            steps = [
                f"Ones: {topic.a % 10}+{topic.b % 10}={ones}",
                f" Tens: {topic.a // 10}+{topic.b // 10}+{carry}={tens}",
                f" Answer: {answer}",
            ]
            labels = [not any(slips[: n + 1]) for n in range(3)]
        rows.append({"prompt": _user(prompt), "completions": steps, "labels": labels})
    return rows


def prompts(count: int, seed: int, side: Side = "held_out", share_sums: float = 0.5) -> list[Row]:
    """Prompt-only rows."""
    rng = random.Random(f"prompts {seed}")
    return [{"prompt": _user(ask(rng, topic))} for topic in _topics(rng, count, share_sums, side)]


def sums(count: int, seed: int, side: Side = "train") -> list[Row]:
    """Prompt-only rows that ask for a sum, and its *answer*."""
    rng = random.Random(f"sums {seed}")
    topics = [rng.choice(_SUM_TOPICS[side]) for _ in range(count)]
    return [
        {"prompt": _user(ask(rng, topic)), "answer": str(topic.a + topic.b)}
        for topic in topics
        if isinstance(topic, Sum)
    ]


class Candidates(NamedTuple):
    """A prompt and different completions of it, for people to rank."""

    prompt: str
    completions: list[str]

    @property
    def conversation(self) -> list[dict[str, str]]:
        """The prompt as a user's turn: the tiny model has learned within its chat template, and says little outside it."""
        return _user(self.prompt)


def candidates(count: int, seed: int, completions: int = 4, side: Side = "train") -> list[Candidates]:
    """Questions for a labeling session: polite, half-polite and rude replies; worked, right and wrong sums.

    No two completions of a prompt are equal, and no prompt comes twice.
    """
    if not 2 <= completions <= 6:
        raise ValueError("two to six completions per prompt")
    rng = random.Random(f"candidates {seed}")
    questions: dict[str, list[str]] = {}
    topics = _topics(rng, 100 * count, 0.3, side)
    while len(questions) < count:
        topic = next(topics)
        texts: dict[str, None] = {}  # a set that keeps its order
        while len(texts) < completions:
            if isinstance(topic, Sum):
                texts[work_out(topic) if not texts else guess(rng, topic)] = None
            else:
                texts[reply(rng, topic, (3, 0, 2, 1)[len(texts) % 4])] = None
        shuffled = list(texts)
        rng.shuffle(shuffled)
        questions[ask(rng, topic)] = shuffled
    return [Candidates(prompt, texts) for prompt, texts in questions.items()]


def candidate_quality(prompt: str, completion: str) -> float:
    """How good a careful annotator finds *completion*, from 0 to 3: what the demo's scripted annotators go by."""
    if is_sum(prompt):
        right = answer_is_right(prompt, completion)
        return 3.0 if right and "Tens:" in completion else 1.5 if right else 0.0
    sentences = sum(re.search(_any_of(_POLITE[i]), completion) is not None for i in range(3))
    return float(sentences)
