"""Texts and conversations as token ids: where a completion begins, what counts in the loss, and that nobody ends a turn.

In conversations, control tokens inside a message are broken with an invisible character before the chat template sees
them; plain text is taken as it stands, since it may be somebody's own template.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple
from unicodedata import east_asian_width

from transformers import PreTrainedTokenizerBase

from backend.runs.events import Note
from worker.objectives import IGNORED
from worker.report import SpecCannotWork

_MANY = 0.1
"""Share of plain completions that touch their prompt from which on it is said."""

_INVISIBLE = "\u200c"
"""Zero-width non-joiner: breaks a control token without changing what a person reads."""


class Pair(NamedTuple):
    """A prompt and what follows it, as token ids."""

    prompt: list[int]
    completion: list[int]


@dataclass
class Encoder:
    """Turns texts and conversations into token ids, and counts what it had to change."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    counts: Counter[str] = field(default_factory=Counter)
    """Rows by what happened to them: ``cut`` (not ``dropped`` besides), ``cut_left``, ``identical``, ``broken`` (a control token).

    And plain completions: ``plain``, of which ``touching`` follow their prompt without a space.
    """

    def __post_init__(self) -> None:
        specials = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        specials |= set(self.tokenizer.all_special_tokens)
        self._control = re.compile("|".join(re.escape(token) for token in sorted(specials, key=len, reverse=True)))

    def pairs(self, prompts: Sequence[Any], completions: Sequence[Any], *, check_end: bool = True) -> list[Pair]:
        """Each completion after its prompt, both plain or both conversations, ended by the end token.

        A completion begins where the tokens of prompt and of prompt + completion part, which is TRL's rule. Plain text is
        joined as it stands, as TRL does: whether a space is missing between them only its author knows, and :meth:`note`
        asks.
        *check_end*: raise :class:`SpecCannotWork` if the chat template would never end a turn.
        """
        if isinstance(prompts[0], str):
            end = self.tokenizer.eos_token
            ended = [text if text.endswith(end) else text + end for text in completions]
            openings, wholes = prompts, [prompt + text for prompt, text in zip(prompts, ended, strict=True)]
            special = True
            self.counts["plain"] += len(prompts)
            self.counts["touching"] += sum(map(_touch, prompts, completions))
        else:
            openings = [self.render(prompt, reply=True) for prompt in prompts]
            wholes = [self.render([*p, *c]) for p, c in zip(prompts, completions, strict=True)]
            special = False
        pairs = []
        for opening, whole in zip(self.ids(openings, special), self.ids(wholes, special), strict=True):
            start = _shared(opening, whole)
            pairs.append(Pair(whole[:start], whole[start:]))
        if check_end and not special:
            self._check_end(pairs[0].completion)
        return pairs

    def render(self, messages: Sequence[dict[str, str]], *, reply: bool = False) -> str:
        """A conversation as text; *reply*: opened for the assistant's answer. No message can end a turn."""
        safe = [{"role": message["role"], "content": self.defuse(message["content"])} for message in messages]
        if self.tokenizer.chat_template is None:
            raise SpecCannotWork(
                "the rows are conversations, and the model has no chat template",
                remedy="Use a model with a chat template, or rows of plain text.",
                field="base_model",
            )
        try:
            rendered = self.tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=reply)
        except Exception as error:  # a template is a program and fails in its own ways
            raise SpecCannotWork(
                f"a conversation does not fit the model's chat template: {error}",
                remedy="Use rows whose roles the template knows.",
                field="dataset",
            ) from error
        assert isinstance(rendered, str)
        return rendered

    def defuse(self, text: str) -> str:
        """*text* without control tokens: an invisible character after the first letter of each."""
        safe, found = self._control.subn(lambda match: match[0][:1] + _INVISIBLE + match[0][1:], text)
        self.counts["broken"] += found > 0
        return safe

    def replies(self, conversations: Sequence[Any]) -> list[tuple[list[int], list[int]]]:
        """Token ids of whole conversations, and labels in which only what the assistant says counts."""
        if not re.search(r"\{%-?\s*generation", self.tokenizer.chat_template or ""):
            raise SpecCannotWork(
                "the chat template does not mark what the assistant says ({% generation %})",
                remedy="Turn it off, use rows with prompt and completion, or a template with these markers.",
                field="completion_only",
            )
        safe = [[{**m, "content": self.defuse(m["content"])} for m in messages] for messages in conversations]
        try:
            encoded: Any = self.tokenizer.apply_chat_template(safe, return_dict=True, return_assistant_tokens_mask=True)
        except Exception as error:  # a template is a program and fails in its own ways
            raise SpecCannotWork(
                f"a conversation does not fit the chat template: {error}",
                remedy="Use rows whose roles the template knows.",
                field="dataset",
            ) from error
        replies = [
            (ids, [token if counts else IGNORED for token, counts in zip(ids, mask, strict=True)])
            for ids, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        ]
        if said := next((labels for _, labels in replies if any(label != IGNORED for label in labels)), None):
            self._check_end(said)  # a template may leave the end of a turn outside its markers
        return replies

    def openings(self, prompts: Sequence[Any]) -> list[list[int]]:
        """Token ids of prompts alone, all plain or all conversations, opened for the answer."""
        if isinstance(prompts[0], str):
            return self.ids(prompts, special=True)
        return self.ids([self.render(prompt, reply=True) for prompt in prompts], special=False)

    def _check_end(self, reply: Sequence[int]) -> None:
        if self.tokenizer.eos_token_id not in reply:
            raise SpecCannotWork(
                f"the chat template does not end a turn with the tokenizer's end token {self.tokenizer.eos_token!r}, "
                "so the model would never learn to stop",
                remedy="Set eos_token in tokenizer_config.json to the token that the template writes after a reply.",
                field="base_model",
            )

    def texts(self, texts: Sequence[Any]) -> list[list[int]]:
        """Token ids of whole plain texts or conversations."""
        if isinstance(texts[0], str):
            end = self.tokenizer.eos_token
            return self.ids([text if text.endswith(end) else text + end for text in texts], special=True)
        whole = self.ids([self.render(messages) for messages in texts], special=False)
        self._check_end(whole[0])
        return whole

    def ids(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Token ids of texts; *special*: with the tokens that the tokenizer puts before a plain text.

        Not with an end token that some put after it: a prompt would end where a completion shall begin, and a
        completion, whose end is written in its text, would end twice.
        """
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=special)["input_ids"]
        return [row[:-1] for row in ids] if special and self._ends_texts else ids

    @cached_property
    def _ends_texts(self) -> bool:
        """Whether the tokenizer puts its end token after a plain text."""
        alone, ended = (self.tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        end = [self.tokenizer.eos_token_id]
        return bool(ended[-1:] == end and alone[-1:] != end)

    def note(self) -> list[Note]:
        """What was counted, in sentences for the run's log."""
        said = {
            "cut": "{} rows are longer than {} tokens; their end was cut.",
            "cut_left": "{} prompts are longer than {} tokens; their beginning was cut.",
            "empty": "{} prompts were left out: they hold no token.",
            "dropped": "{} rows were left out: within {} tokens nothing that counts in the loss is left.",
            "identical": "{} pairs were left out: chosen and rejected are the same.",
            "ties": "{} pairs were left out: neither side is better, and only probabilities can say so to the loss.",
            "turned": "{} pairs changed sides: fewer than half of the annotators preferred what is chosen.",
            "undecided": "{} solutions are cut at {} tokens before any wrong step: their steps count, but in no figure of whole "
            "solutions, because nobody who reads them can know how they end.",
            "parted": "{} solutions have steps that hold the separator, and whoever reads them sees more steps: all parts of a right "
            "step are right; of a wrong one the last is wrong, and of the others nobody knows.",
            "unscored": "{} rows were left out: they have no score of an attribute that is learned.",
            "broken": "{} messages hold a control token of the model; an invisible character makes it plain text.",
        }
        notes = [
            Note(level="warning", text=text.format(self.counts[key], self.max_length))
            for key, text in said.items()
            if self.counts[key]
        ]
        touching, plain = self.counts["touching"], self.counts["plain"]
        if plain and touching >= _MANY * plain:
            text = (
                f"{touching} of {plain} completions follow their plain prompt without a space or a line break between them "
                "and are read run together with it. If that is not meant, let prompts end or completions begin with one."
            )
            notes.append(Note(level="warning", text=text))
        return notes


def check_end(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], prompt: Any) -> None:
    """Raises :class:`SpecCannotWork` if a reply to *prompt* as the chat template writes it has none of the tokens *ends*.

    The policy was taught that template: it would never be seen to end, and every completion would be cut.
    """
    if isinstance(prompt, str):
        return
    reply = [{"role": "assistant", "content": "Yes."}]
    (pair,) = Encoder(tokenizer, max_length=0).pairs([prompt], [reply], check_end=False)
    if not set(ends).intersection(pair.completion):
        raise SpecCannotWork(
            f"the chat template ends a reply with none of the model's end tokens {tokenizer.convert_ids_to_tokens(list(ends))}, "
            "so no completion would ever end",
            remedy="Set eos_token in tokenizer_config.json to the token that the template writes after a reply.",
            field="base_model",
        )


def _touch(prompt: str, completion: str) -> bool:
    """Whether two texts that are joined as they stand would want a space between them."""
    ends = prompt[-1:] + completion[:1]
    return len(ends) == 2 and not any(char.isspace() or east_asian_width(char) in "WF" for char in ends)


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
