"""The embedded task: its grammar, what is kept out of the pretraining text, and pretraining."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ranks
from transformers import LlamaForCausalLM

from w2s_fast.errors import W2SError
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.tasks import PretrainConfig, TaskConfig, get_task
from w2s_fast.tasks.datasets import agreement as grammar
from w2s_fast.tasks.datasets.agreement_lm import number_accuracy, pretrain
from w2s_fast.training import next_token_probs

NUMBER = {form: plural for pair in grammar.NOUNS for plural, form in enumerate(pair)}
TINY = TaskConfig(
    n_weak=20,
    n_transfer=40,
    n_test=30,
    pretrain=PretrainConfig(hidden=16, layers=1, heads=2, steps=3, batch_size=4, length=16),
)


def _last_noun(text: str) -> int:
    return next(NUMBER[word] for word in reversed(text.split()) if word in NUMBER)


def _subject_number(text: str) -> int:
    return next(NUMBER[word] for word in text.split() if word in NUMBER)


def test_default_splits() -> None:
    data = get_task("agreement").load(TaskConfig(), seed=0)
    parts = (data.weak, data.transfer, data.test)
    assert [len(part) for part in parts] == [400, 2000, 2000]
    assert [int(part.labels.sum()) for part in parts] == [200, 1000, 1000]
    texts = [text for part in parts for text in part.texts]
    assert len(set(texts)) == len({i for part in parts for i in part.ids}) == 4400
    assert all(grammar.is_reserved(text) for text in texts)
    assert data.class_names == ("singular", "plural")
    for part in parts:
        assert [_subject_number(text) for text in part.texts] == part.labels.tolist()
        assert part.pairs is None and len(set(part.groups)) == len(part)


def test_labels_are_in_random_order() -> None:
    labels = get_task("agreement").load(TaskConfig(), seed=0).transfer.labels
    changes = int((labels[1:] != labels[:-1]).sum())
    assert 900 < changes < 1100  # 1000 expected, sd 22


def test_seed_and_language_decide() -> None:
    task = get_task("agreement")
    one, two = task.load(TINY, 0), task.load(TINY, 0)
    assert one.test.ids == two.test.ids and one.weak.texts == two.weak.texts
    assert one.test.ids != task.load(TINY, 1).test.ids
    assert one.test.ids != task.load(replace(TINY, language_seed=1), 0).test.ids


def test_attractors_are_as_frequent_as_asked() -> None:
    rng, language = Random(0), grammar.Language()
    for text in (language.prefix(rng, 1, attractor=True) for _ in range(100)):
        assert _last_noun(text) == 0 and _subject_number(text) == 1
    base = [_last_noun(language.prefix(rng, 0, attractor=False)) for _ in range(2000)]
    assert 0.32 < sum(base) / 2000 < 0.43  # one noun in a quarter, else a coin: 0.375
    for frac in (0.0, 0.2, 1.0):  # few items: among many, short ones without attractors repeat
        items = grammar.draw_items(Random(1), 400, TaskConfig(attractor_frac=frac), set())
        last = np.array([_last_noun(text) for text in items.texts])
        assert abs((last != items.labels).mean() - (frac + 0.375 * (1 - frac))) < 0.08


def test_no_task_prefix_anywhere_in_the_pretraining_text() -> None:
    data = get_task("agreement").load(TaskConfig(), seed=0)
    prefixes = {text for part in (data.weak, data.transfer, data.test) for text in part.texts}
    for sentence in itertools.islice(grammar.pretraining_text(0), 3000):
        words = sentence.split()
        for start in range(len(words)):
            for end in range(start + 1, len(words)):
                assert " ".join(words[start:end]) not in prefixes


def test_pretraining_text_is_grammatical_and_has_cues_on_half_of_the_nouns() -> None:
    sentences = list(itertools.islice(grammar.pretraining_text(1), 3000))
    counts = Counter(word for sentence in sentences for word in sentence.split())
    cues, articles = (sum(counts[w] for w in ws) for ws in (grammar.CUES, ("the", "some")))
    assert 0.47 < cues / (cues + articles) < 0.53
    verbs = {form: plural for pair in grammar.COPULAS for plural, form in enumerate(pair)}
    for sentence in sentences:
        words = sentence.split()
        assert words[-1] == "."
        for cue, follower in itertools.pairwise(words):
            if cue in grammar.CUES and follower in NUMBER:
                assert NUMBER[follower] == grammar.CUES.index(cue)
        main = next((word for word in words if word in verbs), None)
        if main is not None:
            assert verbs[main] == _subject_number(sentence)
    assert sentences == list(itertools.islice(grammar.pretraining_text(1), 3000))
    assert sentences[0] != next(grammar.pretraining_text(2))


def _sentences(n: int = 3000, **fields: float) -> list[str]:
    cfg = TaskConfig(pretrain=PretrainConfig(**fields))  # type: ignore[arg-type]
    return list(itertools.islice(grammar.pretraining_text(0, cfg), n))


@pytest.mark.parametrize("frac", [0.0, 0.25])
def test_noise_is_the_share_of_wrong_main_verbs(frac: float) -> None:
    copulas = {form: plural for pair in grammar.COPULAS for plural, form in enumerate(pair)}
    wrong = []
    for words in map(str.split, _sentences(noise_frac=frac)):
        main = next((word for word in words if word in copulas), None)
        if main is not None:
            wrong.append(copulas[main] != _subject_number(" ".join(words)))
    assert len(wrong) > 500
    assert abs(np.mean(wrong) - frac) <= (0.05 if frac else 0)


def test_coverage_keeps_nouns_of_all_ranks_from_the_text_but_not_from_the_task() -> None:
    assert {w for s in _sentences(noun_coverage=1.0) for w in s.split()} >= NUMBER.keys()
    words = {word for sentence in _sentences(noun_coverage=0.75) for word in sentence.split()}
    absent = [pair for pair in grammar.NOUNS if not words & set(pair)]
    assert len(absent) == len(grammar.NOUNS) - int(0.75 * len(grammar.NOUNS))
    items = grammar.draw_items(Random(0), 2000, TaskConfig(), set())
    heads = [next(word for word in text.split() if word in NUMBER) for text in items.texts]
    share = np.mean([head in {form for pair in absent for form in pair} for head in heads])
    assert 0.2 < share < 0.4  # 0.25 of the draws; repeated texts, dropped, have frequent nouns


@pytest.mark.parametrize("distance", [1, 4])
def test_attractor_distance_counts_the_nouns_after_the_head(distance: int) -> None:
    rng, language = Random(0), grammar.Language()
    texts = [language.prefix(rng, 1, attractor=True, distance=distance) for _ in range(300)]
    counts = [sum(word in NUMBER for word in text.split()) - 1 for text in texts]
    assert set(counts) == {distance, distance + 1}  # one more of two prepositions
    assert {(_subject_number(t), _last_noun(t)) for t in texts} == {(1, 0)}
    cfg = TaskConfig(n_weak=50, attractor_distance=distance)
    most = max(sum(word in NUMBER for word in t.split()) for t in _load_weak(cfg))
    assert most == distance + 2


def _load_weak(cfg: TaskConfig) -> tuple[str, ...]:
    return get_task("agreement").load(replace(cfg, n_transfer=2, n_test=2), 0).weak.texts


def test_text_has_every_distance_up_to_its_own() -> None:
    """The grammar ends a subject at a verb that is not in a relative clause, here a copula."""
    copulas = {form for pair in grammar.COPULAS for form in pair}
    most = {}
    for distance in (1, 3):
        counts = Counter(
            sum(word in NUMBER for word in itertools.takewhile(lambda w: w not in copulas, words))
            for words in map(str.split, _sentences(attractor_distance=distance))
            if copulas & set(words)
        )
        most[distance] = max(counts)
        assert all(counts[n] for n in range(1, max(counts)))
    assert most == {1: 3, 3: 5}
    prefixes = set(_load_weak(TaskConfig(n_weak=2000, attractor_distance=2)))
    for words in map(str.split, _sentences(attractor_distance=3)):
        spans = (" ".join(words[i:j]) for i in range(len(words)) for j in range(i, len(words) + 1))
        assert prefixes.isdisjoint(spans)


def test_no_cues_where_none_are_asked_for() -> None:
    cfg = TaskConfig(pretrain=PretrainConfig(cue_frac=0.0))
    sentences = itertools.islice(grammar.pretraining_text(0, cfg), 200)
    assert not any(cue in sentence.split() for sentence in sentences for cue in grammar.CUES)


def test_tokenizer_knows_every_word() -> None:
    tokenizer = grammar.tokenizer()
    assert len(tokenizer) == len(grammar.vocabulary()) == 282
    data = get_task("agreement").load(TINY, 0)
    encoded = tokenizer(list(data.test.texts), padding=True, return_tensors="pt")
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert tokenizer.unk_token_id not in encoded["input_ids"]
    assert (encoded["input_ids"][:, 0] == tokenizer.bos_token_id).all()
    lengths = encoded["attention_mask"].sum(1).tolist()
    assert lengths == [len(text.split()) + 1 for text in data.test.texts]
    assert tokenizer("the zebra")["input_ids"][-1] == tokenizer.unk_token_id
    sentence = next(grammar.pretraining_text(0))
    assert tokenizer.decode(tokenizer(sentence)["input_ids"][1:]) == sentence


def test_pretraining_is_decided_by_its_seed(tmp_path: Path) -> None:
    steps: list[tuple[int, int, float]] = []
    state = torch.random.get_rng_state()
    pretrain(tmp_path / "one", TINY, 0, lambda *step: steps.append(step))
    assert torch.equal(state, torch.random.get_rng_state())
    assert [(step, total) for step, total, _ in steps] == [(1, 3), (2, 3), (3, 3)]
    assert all(loss > 0 for *_, loss in steps)
    torch.rand(5)
    pretrain(tmp_path / "two", TINY, 0)
    pretrain(tmp_path / "three", TINY, 1)
    one, two, three = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "three")
    )
    assert one == two != three


def test_pretrained_directory_loads_as_transformers_checkpoint(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    pretrain(tmp_path / "deep" / "lm", TINY, 0)
    names = {path.name for path in (tmp_path / "deep" / "lm").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["lm"]  # nothing left beside
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "deep" / "lm")
    text = "the old key of these doors"
    assert tokenizer(text)["input_ids"] == grammar.tokenizer()(text)["input_ids"]
    assert tokenizer.pad_token_id == 0 and tokenizer.padding_side == "right"
    hidden = AutoModel.from_pretrained(tmp_path / "deep" / "lm")(
        **tokenizer(text, return_tensors="pt")
    ).last_hidden_state
    assert hidden.shape == (1, 7, 16)
    assert (
        0.0
        <= number_accuracy(LlamaForCausalLM.from_pretrained(tmp_path / "deep" / "lm"), TINY, n=40)
        <= 1.0
    )


def test_pretraining_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(W2SError, match="exists and is not empty; remove it"):
        pretrain(tmp_path, TINY, 0)
    assert (tmp_path / "kept.txt").read_text() == "mine"


def test_failed_save_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    with pytest.raises(W2SError, match="No space left on device.*; free space") as caught:
        pretrain(tmp_path / "lm", TINY, 0)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class _Oracle(torch.nn.Module):
    """A language model that gives every verb of one number, right or wrong, more probability."""

    def __init__(self, right: bool) -> None:
        super().__init__()
        self._right = right
        self._words = list(grammar.vocabulary())

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        """Return logits (B, T, V); only those of the last word of a text are not zero."""
        ids = grammar.vocabulary()
        logits = torch.zeros(*input_ids.shape, len(ids))
        for row, length in enumerate(attention_mask.sum(1).tolist()):
            text = " ".join(self._words[i] for i in input_ids[row, :length])
            plural = _subject_number(text) if self._right else 1 - _subject_number(text)
            for verb in grammar.VERBS:
                logits[row, length - 1, ids[verb[plural]]] = 1.0
        return SimpleNamespace(logits=logits)


def test_number_accuracy_reads_the_verb_after_the_last_word() -> None:
    assert number_accuracy(_Oracle(right=True), TINY, n=50) == 1.0  # type: ignore[arg-type]
    assert number_accuracy(_Oracle(right=False), TINY, n=50) == 0.0  # type: ignore[arg-type]


@pytest.mark.slow
@ranks.minutes  # most of one; the main job does the same
def test_default_pretraining_learns_agreement_with_the_nouns_it_reads(tmp_path: Path) -> None:
    """Zero-shot accuracy is far from that of a weak model, 0.83, and from 1."""
    cfg, threads = TaskConfig(), torch.get_num_threads()
    pretrain(tmp_path / "lm", cfg, 0)
    assert torch.get_num_threads() == threads
    tokenizer = grammar.tokenizer()
    model = build_model(ModelConfig(str(tmp_path / "lm")), 2, tokenizer, 0, "generation")
    assert sum(p.numel() for p in model.parameters()) == 359_520
    data = get_task("agreement").load(cfg, 0)
    texts = [data.prompt.replace("{text}", text) for text in data.test.texts]
    probs = next_token_probs(model, tokenizer, texts, data.words)
    right = probs.argmax(1) == data.test.labels
    known = {word for text in _sentences(5000) for word in text.split()}
    heads = [next(word for word in text.split() if word in NUMBER) for text in texts]
    is_known = np.array([head in known for head in heads])
    assert 0.85 < right.mean() < 0.93
    assert right[is_known].mean() > 0.97
    assert 0.35 < right[~is_known].mean() < 0.65
