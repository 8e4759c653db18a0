"""Subject-verb number agreement in a small generated English grammar; nothing is downloaded.

The text is a sentence up to its main verb; the label says whether that verb must be plural: "the
keys of the old cabinet" takes "are". The noun just before the verb may have the other number (an
attractor), which misleads a weak model. The student is a causal language model pretrained on
sentences of the same grammar without labels (`agreement_lm`).

A quarter of all prefixes, selected by a hash, is reserved for the task: no reserved prefix occurs
in the pretraining text. Source: Linzen, Dupoux & Goldberg 2016 (arXiv 1611.01368).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from w2s_fast.tasks._agreement_config import OodConfig
from w2s_fast.tasks._base import Examples, TaskData
from w2s_fast.tasks._config import PretrainConfig, TaskConfig
from w2s_fast.tasks._split import make_examples
from w2s_fast.tasks.datasets.agreement_shortcut import add_shortcut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "<eos>", "<unk>"
MAX_LENGTH = 128  # tokens; at attractor_distance=1 the longest prefix has 11


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_PLUS_S = _split(
    "apple bird boat book boot bottle boy cabinet cake car carrot cat chair coat coin cook cow "
    "cup doctor dog door driver engine farmer flower garden girl hammer hat horse hunter key king "
    "lamp lawyer letter melon onion painter paper pear picture pilot plate queen ring river road "
    "sailor shirt singer spoon student table teacher train tree wheel window writer"
)
_PLUS_ES = _split("beach bench box brush bus church dish dress fox glass watch witch")
_Y_TO_IES = _split("army baby berry city diary factory fairy ferry lady library party pony story")
_IRREGULAR = _split(
    "man/men woman/women child/children mouse/mice goose/geese tooth/teeth foot/feet wife/wives "
    "knife/knives wolf/wolves leaf/leaves thief/thieves ox/oxen loaf/loaves"
)
# (singular, plural); a language shuffles them into its order of frequency
NOUNS: tuple[tuple[str, str], ...] = (
    *((word, word + "s") for word in _PLUS_S),
    *((word, word + "es") for word in _PLUS_ES),
    *((word, word[:-1] + "ies") for word in _Y_TO_IES),
    *((pair.split("/")[0], pair.split("/")[1]) for pair in _IRREGULAR),
)
COPULAS = (("is", "are"), ("was", "were"), ("seems", "seem"), ("looks", "look"))
_TRANSITIVE_STEMS = _split(
    "draw find follow hear help know like meet need paint pull remember see trust visit want"
)
TRANSITIVES = tuple((stem + "s", stem) for stem in _TRANSITIVE_STEMS)
VERBS = COPULAS + TRANSITIVES
_LAST_WORDS = frozenset(form for pair in (*NOUNS, *TRANSITIVES) for form in pair)
ADJECTIVES = _split(
    "big blue bright clean cold dark dirty happy heavy light loud new old quiet red sad small "
    "strange warm young"
)
PREPOSITIONS = _split("behind beside from near of to under with")
ADVERBS = _split("again here never often still today")
CUES = ("this", "these")


class Slot(NamedTuple):
    """One slot of a sentence plan: its kind, its number, and whether a cue shows the number."""

    kind: str
    plural: int = 0
    cue: bool = False


class Language:
    """The grammar with one ranking of its nouns, whose frequency is proportional to rank**-0.8.

    Args:
        seed: Seed of the ranking.
        coverage: Share of the nouns that occur, spread evenly over the ranks.
    """

    def __init__(self, seed: int = 0, coverage: float = 1.0) -> None:
        nouns = list(NOUNS)
        Random(f"nouns/{seed}").shuffle(nouns)
        n = len(nouns)
        ranks = [r for r in range(1, n + 1) if int(r * coverage) > int((r - 1) * coverage)]
        self._nouns = [nouns[rank - 1] for rank in ranks]
        self._weights = list(accumulate(rank**-0.8 for rank in ranks))

    def prefix(self, rng: Random, plural: int, attractor: bool, distance: int = 1) -> str:
        """Draw a reserved prefix without cues.

        Args:
            rng: Source of randomness.
            plural: Number of the head noun, 0 or 1: the label.
            attractor: Whether the last noun must have the other number; False leaves it free.
            distance: See ``TaskConfig.attractor_distance``.
        """
        last = 1 - plural if attractor else None
        while True:
            text = " ".join(self._words(rng, _subject(rng, plural, 0.0, last, distance)))
            if is_reserved(text):
                return text

    def sentence(self, rng: Random, cfg: PretrainConfig) -> str:
        """Draw a sentence that contains no reserved prefix; it is grammatical but for the noise."""
        plural, cue_frac = rng.randint(0, 1), cfg.cue_frac
        distance = rng.randint(1, cfg.attractor_distance)
        words = self._unreserved(rng, _subject(rng, plural, cue_frac, None, distance))
        verb = rng.choice(VERBS)
        wrong = rng.random() < cfg.noise_frac
        words.append(verb[1 - plural if wrong else plural])
        if verb in COPULAS:
            words.append(rng.choice(ADJECTIVES))
            if rng.random() < 0.2:
                words += ["and", rng.choice(ADJECTIVES)]
        else:
            plan = [_noun(rng, rng.randint(0, 1), cue_frac)]
            if rng.random() < 0.2:
                plan += [Slot("preposition"), _noun(rng, rng.randint(0, 1), cue_frac)]
            words += self._unreserved(rng, plan)
        if rng.random() < 0.2:
            words.append(rng.choice(ADVERBS))
        return " ".join([*words, "."])

    def _words(self, rng: Random, plan: list[Slot]) -> list[str]:
        words: list[str] = []
        for slot in plan:
            if slot.kind == "noun":
                words += self._noun_phrase(rng, slot)
            elif slot.kind == "verb":
                words.append(rng.choice(TRANSITIVES)[slot.plural])
            else:
                words.append("that" if slot.kind == "that" else rng.choice(PREPOSITIONS))
        return words

    def _noun_phrase(self, rng: Random, slot: Slot) -> list[str]:
        article = CUES[slot.plural] if slot.cue else "some" if rng.random() < 0.15 else "the"
        adjective = [rng.choice(ADJECTIVES)] if rng.random() < 0.3 else []
        noun = rng.choices(self._nouns, cum_weights=self._weights)[0][slot.plural]
        return [article, *adjective, noun]

    def _unreserved(self, rng: Random, plan: list[Slot]) -> list[str]:
        """Draw words for the plan until they contain no reserved prefix.

        The plan is fixed, so this changes neither the shapes of sentences nor their cues.
        """
        while True:
            words = self._words(rng, plan)
            if not any(map(is_reserved, _spans(words))):
                return words


def is_reserved(prefix: str) -> bool:
    """Return whether a prefix is reserved for the task; the hash reserves a quarter of all."""
    return zlib.crc32(prefix.encode()) % 4 == 0


def pretraining_text(seed: int, cfg: TaskConfig | None = None) -> Iterator[str]:
    """Yield sentences, endlessly; none contains a reserved prefix.

    Args:
        seed: Seed of the text.
        cfg: Task options; ``language_seed`` and ``pretrain`` are used.
    """
    cfg = cfg or TaskConfig()
    language = Language(cfg.language_seed, cfg.pretrain.noun_coverage)
    rng = Random(f"text/{seed}")
    while True:
        yield language.sentence(rng, cfg.pretrain)


def vocabulary() -> dict[str, int]:
    """Return the id of every token, special tokens first."""
    pairs = (*NOUNS, *VERBS)
    words = ["the", "some", *CUES, "that", "and", ".", *PREPOSITIONS, *ADVERBS, *ADJECTIVES]
    words += [form for pair in pairs for form in pair]
    tokens = dict.fromkeys([PAD, END, UNKNOWN, *words])
    return {token: index for index, token in enumerate(tokens)}


def tokenizer() -> PreTrainedTokenizerFast:
    """Build the word tokenizer: "<eos>" opens every text, padding is on the right."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    ids = vocabulary()
    backend = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, ids[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=END,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="right",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def draw_items(rng: Random, n: int, cfg: TaskConfig, used: set[str]) -> Examples:
    """Draw ``n`` items that are not in ``used``, half of them plural, and add them to ``used``.

    Args:
        rng: Source of randomness.
        n: Number of items.
        cfg: ``attractor_frac``, ``attractor_distance``, ``shortcut``, ``language_seed`` are used.
        used: Prefixes of other items.
    """
    language = Language(cfg.language_seed)
    items: list[tuple[str, int, str]] = []
    shortcut = cfg.shortcut.availability > 0
    while len(items) < n:
        plural = len(items) % 2
        attractor = rng.random() < cfg.attractor_frac
        text = language.prefix(rng, plural, attractor, cfg.attractor_distance)
        while text in used:
            text = language.prefix(rng, plural, attractor, cfg.attractor_distance)
        used.add(text)
        subgroup = ""
        if shortcut:
            text, subgroup = add_shortcut(rng, text, plural, cfg.shortcut)
        items.append((text, plural, subgroup))
    rng.shuffle(items)
    texts, labels, subgroups = zip(*items, strict=True)
    return make_examples(texts, labels, subgroups=subgroups if shortcut else None)


class Agreement:
    """The embedded task; all items differ, so each is its own group."""

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """Return the splits, which are always balanced; ``cfg.balance`` has no effect."""
        rng, used = Random(f"items/{seed}"), set[str]()
        weak, transfer, test = (
            draw_items(rng, n, cfg, used) for n in (cfg.n_weak, cfg.n_transfer, cfg.n_test)
        )
        data = TaskData(
            cfg.name,
            ("singular", "plural"),
            weak,
            transfer,
            test,
            ood=_shifted_items(cfg, seed, used),
        )
        return data.with_prompt(cfg, "{text}", (" is", " are"))


def _shifted_items(cfg: TaskConfig, seed: int, used: set[str]) -> Examples | None:
    """Draw the out-of-distribution items, None if there are none."""
    if not cfg.ood.n:
        return None
    shortcut, distance = cfg.ood.shifted(cfg.shortcut, cfg.attractor_distance)
    shifted = replace(cfg, shortcut=shortcut, attractor_distance=distance, ood=OodConfig())
    return draw_items(Random(f"ood/{seed}"), cfg.ood.n, shifted, used)


def _noun(rng: Random, plural: int, cue_frac: float) -> Slot:
    return Slot("noun", plural, rng.random() < cue_frac)


def _subject(
    rng: Random, plural: int, cue_frac: float, last: int | None, distance: int
) -> list[Slot]:
    """Plan a subject; ``last`` is the number of its last noun (None: free, possibly a single noun).

    Shares: one noun 25 %, noun + preposition + noun 35 %, two prepositions 15 %, object relative
    clause 15 %, subject relative clause 10 %. ``distance`` - 1 prepositional phrases follow the
    head of all but the first.
    """
    draw = rng.random() if last is None else 0.25 + 0.75 * rng.random()
    end = rng.randint(0, 1) if last is None else last
    head, tail = _noun(rng, plural, cue_frac), _noun(rng, end, cue_frac)
    middle = _noun(rng, rng.randint(0, 1), cue_frac)
    preposition, that = Slot("preposition"), Slot("that")
    if draw < 0.25:
        return [head]
    start = [head]
    for _ in range(distance - 1):
        start += [preposition, _noun(rng, rng.randint(0, 1), cue_frac)]
    if draw < 0.60:
        return [*start, preposition, tail]
    if draw < 0.75:
        return [*start, preposition, middle, preposition, tail]
    if draw < 0.90:
        return [*start, that, tail, Slot("verb", end)]
    # The verb agrees with the noun before the clause.
    return [*start, that, Slot("verb", start[-1].plural), tail]


def _spans(words: list[str]) -> Iterator[str]:
    """Yield every span of words that could be a task prefix: article to noun or verb, no cue."""
    for start, first in enumerate(words):
        if first not in ("the", "some"):
            continue
        for end in range(start + 2, len(words) + 1):
            if words[end - 1] in CUES:
                break
            if words[end - 1] in _LAST_WORDS:
                yield " ".join(words[start:end])
