"""Grade-school word problems with worked solutions, generated: no download, any number of them.

A problem starts with a number of things and changes it in two to four steps; a sentence between
the steps may count something else, a distractor. The prompt is "Question: ...\\nAnswer:", the
solution has one equation a step and ends in "#### n", as those of GSM8K do (Cobbe et al. 2021).

Two problems with the same steps and numbers are the same problem under other names. A hash of
steps and numbers reserves an eighth of all problems for each split; none of these occurs, under any
names, in another split or in the text on which `word_problems_lm` pretrains its models.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from w2s_fast.errors import W2SError
from w2s_fast.tasks._answer_parsing import CLASSES, PROMPT
from w2s_fast.tasks._base import Examples, TaskData
from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks._split import make_examples
from w2s_fast.tasks._word_problems_config import WordProblemsConfig
from w2s_fast.tasks.datasets.gsm8k import read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARKER = "####"
PAD, OPENING, UNKNOWN = "<pad>", "<s>", "<unk>"
END = "\n\n"  # separates the problems of a text, and ends an answer
MAX_LENGTH = 512
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Jo", "Kim", "Leo")
THINGS = (
    "pens", "books", "coins", "cards", "shells", "apples",
    "stamps", "balls", "beads", "keys", "cups", "nuts",
)  # fmt: skip
_TOKEN = r"\n|####|Question:|Answer:| ?[A-Za-z]+| ?\d| ?[^\s\w]"
_SPLITS = ("weak", "transfer", "test")
_MOST = 40  # largest number of a problem
_DRAWS_PER_PROBLEM = 200  # draws per item before the settings count as too strict
# Sentences by kind of step; {o} owns the things now, {n} is another person who owns them after
# steps of kind "more", "fewer" and "times".
_TEMPLATES = {
    "gain": ("{o} buys {k} more.", "{o} finds {k} more.", "{p} gives {o} {k} more."),
    "loss": ("{o} sells {k}.", "{o} loses {k}.", "{o} gives {p} {k}."),
    "more": ("{p} has {k} more than {o}.",),
    "fewer": ("{p} has {k} fewer than {o}.",),
    "times": ("{p} has {k} times as many as {o}.",),
}
SIGNS = {"gain": "+", "more": "+", "loss": "-", "fewer": "-", "times": "*", "distractor": "+"}
_MOVES = ("more", "fewer", "times")


@dataclass(frozen=True)
class Step:
    """One sentence after the first: what it says and the number in it.

    Attributes:
        kind: "gain", "loss", "more", "fewer", "times", or "distractor", which changes nothing.
        number: The number in the sentence.
        text: The sentence.
    """

    kind: str
    number: int
    text: str


@dataclass(frozen=True)
class Problem:
    """A word problem.

    Attributes:
        start: The number that it starts with.
        steps: Its sentences in order, distractors among them.
        opening: The first sentence.
        question: The last sentence.
    """

    start: int
    steps: tuple[Step, ...]
    opening: str
    question: str

    @property
    def prompt(self) -> str:
        """The problem as a prompt."""
        sentences = [self.opening, *(step.text for step in self.steps), self.question]
        return f"Question: {' '.join(sentences)}\nAnswer:"

    @property
    def skeleton(self) -> str:
        """Steps and numbers, without names, things and distractors."""
        counted = (f"{s.kind}{s.number}" for s in self.steps if s.kind != "distractor")
        return " ".join([str(self.start), *counted])

    @property
    def solution(self) -> str:
        """The worked solution as it follows the prompt."""
        real = [(SIGNS[s.kind], s.number) for s in self.steps if s.kind != "distractor"]
        return worked(self.start, real)

    @property
    def split(self) -> str | None:
        """The split for which its skeleton is reserved; None for five eighths of the skeletons."""
        part = zlib.crc32(self.skeleton.encode()) % 8
        return _SPLITS[part] if part < len(_SPLITS) else None


def worked(start: int, steps: list[tuple[str, int]]) -> str:
    """Return a solution of (sign, number) pairs: " 5 + 3 = 8. 8 * 2 = 16.\\n#### 16"."""
    lines, value = [], start
    for sign, number in steps:
        result = apply(value, sign, number)
        lines.append(f" {value} {sign} {number} = {result}.")
        value = result
    return "".join(lines) + f"\n{MARKER} {value}"


def apply(value: int, sign: str, number: int) -> int:
    """Return ``value`` + - or * ``number``."""
    return value + number if sign == "+" else value - number if sign == "-" else value * number


def draw_problem(rng: Random, cfg: WordProblemsConfig) -> Problem:
    """Draw a problem; its numbers are from 1 to 99 after every step."""
    owner, things = rng.choice(NAMES), rng.choice(THINGS)
    start = value = rng.randint(3, 9)
    opening = f"{owner} has {start} {things}."
    steps: list[Step] = []
    for _ in range(rng.randint(cfg.min_steps, cfg.max_steps)):
        kind, number = _draw_step(rng, value)
        other = rng.choice([name for name in NAMES if name != owner])
        text = rng.choice(_TEMPLATES[kind]).format(o=owner, p=other, k=number)
        steps.append(Step(kind, number, text))
        value = apply(value, SIGNS[kind], number)
        owner = other if kind in _MOVES else owner
    if rng.random() < cfg.distractor_frac:
        steps.insert(rng.randrange(len(steps)), _distractor(rng, things))
    return Problem(start, tuple(steps), opening, f"How many {things} does {owner} have?")


def _draw_step(rng: Random, value: int) -> tuple[str, int]:
    while True:
        kind = rng.choice(tuple(_TEMPLATES))
        number = rng.randint(2, 3) if kind == "times" else rng.randint(2, 5)
        if 1 <= apply(value, SIGNS[kind], number) <= _MOST:
            return kind, number


def _distractor(rng: Random, things: str) -> Step:
    number = rng.randint(2, 9)
    other = rng.choice([thing for thing in THINGS if thing != things])
    return Step("distractor", number, f"{rng.choice(NAMES)} also has {number} {other}.")


class WordProblems:
    """Generated problems; no two splits have a problem with the same steps and numbers."""

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """Return the splits, every text once; there are no classes to balance.

        Raises:
            W2SError: The settings allow too few problems.
        """
        weak, transfer, test = (
            _draw_split(Random(f"{seed}/{part}"), part, getattr(cfg, f"n_{part}"), cfg)
            for part in _SPLITS
        )
        data = TaskData(cfg.name, CLASSES, weak, transfer, test)
        return replace(data, kind="generation", read=read).with_prompt(cfg, PROMPT)


def _draw_split(rng: Random, part: str, n: int, cfg: TaskConfig) -> Examples:
    problems: dict[str, Problem] = {}
    for _ in range(_DRAWS_PER_PROBLEM * n):
        problem = draw_problem(rng, cfg.word_problems)
        if problem.split == part:
            problems.setdefault(problem.prompt, problem)
        if len(problems) == n:
            return make_examples(
                list(problems),
                [0] * n,
                groups=[p.skeleton for p in problems.values()],
                answers=[p.solution for p in problems.values()],
            )
    raise W2SError(
        f"task 'word_problems': {len(problems)} different problems in {_DRAWS_PER_PROBLEM * n} "
        f"draws, task.n_{part}={n} are needed; lower it, or raise task.word_problems.max_steps "
        f"(now {cfg.word_problems.max_steps})"
    )


def vocabulary() -> dict[str, int]:
    """Return the id of every token, special tokens first; most tokens begin with their space."""
    words = [w for ts in _TEMPLATES.values() for t in ts for w in t.split() if w[0] != "{"]
    words += ["has", "also", "How", "many", "does", "have"]
    words += [*NAMES, *THINGS, "+", "-", "*", "="]
    tokens = [PAD, OPENING, END, UNKNOWN, "\n", MARKER, "Question:", "Answer:", ".", "?"]
    tokens += map(str, range(10))
    tokens += [f" {token}" for token in [*dict.fromkeys(words), *map(str, range(10))]]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: words with the space before them, numbers digit by digit.

    "<s>" opens every text, a blank line ends an answer, padding is on the right. Decoding gives the
    text back.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    ids = vocabulary()
    backend = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    backend.pre_tokenizer = Split(Regex(_TOKEN), "isolated")
    backend.decoder = Fuse()
    backend.post_processor = TemplateProcessing(
        single=f"{OPENING} $A", pair=f"{OPENING} $A $B", special_tokens=[(OPENING, ids[OPENING])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=OPENING,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="right",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
