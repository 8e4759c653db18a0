"""The task `word_problems`: its problems and solutions, what pretraining sees, and its models."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from w2s_fast.errors import W2SError
from w2s_fast.tasks import TaskConfig, get_task
from w2s_fast.tasks._word_problems_config import (
    SmallWordPretrainConfig,
    SolversConfig,
    WordPretrainConfig,
    WordProblemsConfig,
)
from w2s_fast.tasks.datasets import word_problems, word_problems_lm

SIZES = {"n_weak": 40, "n_transfer": 60, "n_test": 50}
CFG = TaskConfig(name="word_problems", **SIZES)
TINY: dict[str, Any] = {"hidden": 16, "layers": 1, "heads": 2, "steps": 3, "batch_size": 2}
_EQUATION = re.compile(r"(-?\d+) ([-+*]) (\d+) = (-?\d+)\.")


def load(cfg: TaskConfig = CFG, seed: int = 0) -> Any:
    return get_task("word_problems").load(cfg, seed)


def understood(prompt: str) -> tuple[int, str]:
    """Solve a problem by reading its sentences: the answer, and its steps without names.

    The text alone is used: who owns the things that are asked about, sentence by sentence.
    """
    body = prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
    *sentences, question = re.split(r"(?<=\.) ", body)
    asked, who = re.fullmatch(r"How many (\w+) does (\w+) have\?", question).groups()  # type: ignore[union-attr]
    owns: dict[str, int] = {}
    steps = []
    for sentence in sentences:
        number = int(re.search(r"\d+", sentence).group())  # type: ignore[union-attr]
        first, verb = sentence.split()[:2]
        kind = None
        if verb == "also":
            continue
        if "times as many" in sentence:
            owns[first], kind = owns[sentence.split()[-1][:-1]] * number, "times"
        elif "more than" in sentence:
            owns[first], kind = owns[sentence.split()[-1][:-1]] + number, "more"
        elif "fewer than" in sentence:
            owns[first], kind = owns[sentence.split()[-1][:-1]] - number, "fewer"
        elif verb == "gives" and sentence.endswith("more."):
            owns[sentence.split()[2]] += number
            kind = "gain"
        elif verb in ("sells", "loses", "gives"):
            owns[first], kind = owns[first] - number, "loss"
        elif verb in ("buys", "finds"):
            owns[first], kind = owns[first] + number, "gain"
        else:
            assert sentence == f"{first} has {number} {asked}."
            owns[first], kind = number, ""
        steps.append(f"{kind}{number}")
    return owns[who], " ".join(steps)


def checked(solution: str) -> int:
    """Return the answer of a solution whose equations are true and continue each other."""
    steps, _, answer = solution.partition("\n#### ")
    value = None
    for left, sign, right, result in _EQUATION.findall(steps):
        assert value in (None, int(left))
        a, b = int(left), int(right)
        value = a + b if sign == "+" else a - b if sign == "-" else a * b
        assert value == int(result)
    assert value == int(answer)
    return int(answer)


def test_gold_solutions_are_those_of_the_text() -> None:
    data = load(replace(CFG, n_transfer=600, word_problems=WordProblemsConfig(max_steps=4)))
    assert data.kind == "generation" and data.class_names == ("wrong", "right")
    kinds: Counter[int] = Counter()
    for text, answer in zip(data.transfer.texts, data.transfer.answers, strict=True):
        assert checked(answer) == understood(text)[0] == int(data.read(answer))
        assert 1 <= checked(answer) <= 40
        kinds[len(_EQUATION.findall(answer))] += 1
    assert set(kinds) == {2, 3, 4} and min(kinds.values()) > 150


def test_prompts_do_not_hold_the_marker_of_answers() -> None:
    data = load()
    for split in data.splits.values():
        for text in split.texts:
            assert text.startswith("Question: ") and text.endswith("?\nAnswer:")
            assert "####" not in text and "=" not in text and data.read(text.split("Qu")[0]) == ""


def test_splits_differ_in_steps_and_numbers_whatever_the_names() -> None:
    data = load(replace(CFG, n_weak=400, n_transfer=400, n_test=400))
    steps = [{understood(t)[1] for t in split.texts} for split in data.splits.values()]
    assert min(map(len, steps)) > 100
    for one, two in itertools.combinations(steps, 2):
        assert not one & two
    texts = [t for split in data.splits.values() for t in split.texts]
    assert len(set(texts)) == len({i for s in data.splits.values() for i in s.ids}) == 1200
    for split in data.splits.values():
        own = [understood(t)[1] for t in split.texts]
        together = {(a == b, g == h) for a, g in zip(own, split.groups, strict=True)
                    for b, h in zip(own, split.groups, strict=True)}  # fmt: skip
        assert together == {(True, True), (False, False)}


def test_seed_decides_and_sizes_of_other_splits_do_not() -> None:
    one, two, other = load(), load(), load(seed=1)
    assert one.test.texts == two.test.texts and one.weak.answers == two.weak.answers
    assert not set(one.test.texts) & set(other.test.texts)
    assert load(replace(CFG, n_weak=7)).test.texts == one.test.texts
    assert [len(s) for s in one.splits.values()] == [40, 60, 50]


@pytest.mark.parametrize("frac", [0.0, 0.5, 1.0])
def test_distractors_are_as_frequent_as_asked(frac: float) -> None:
    cfg = replace(CFG, n_test=400, word_problems=WordProblemsConfig(distractor_frac=frac))
    share = sum(" also has " in text for text in load(cfg).test.texts) / 400
    assert share == frac or (frac == 0.5 and 0.4 < share < 0.6)


def test_one_step_is_enough_for_all_splits_and_too_many_items_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = replace(CFG, word_problems=WordProblemsConfig(1, 1, 0.0))
    assert all(len(_EQUATION.findall(a)) == 1 for a in load(cfg).weak.answers)
    monkeypatch.setattr(word_problems, "_DRAWS_PER_PROBLEM", 2)
    with pytest.raises(W2SError, match=r"in 80 draws, task.n_weak=40 are needed; lower it"):
        load(cfg)


def test_tokenizer_gives_texts_back_and_writes_numbers_digit_by_digit() -> None:
    tokenizer = word_problems.tokenizer()
    data = load(replace(CFG, word_problems=WordProblemsConfig(max_steps=4)))
    for text, answer in zip(data.test.texts, data.test.answers, strict=True):
        ids = tokenizer(text + answer + "\n\n")["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text + answer
        assert ids[: len(tokenizer(text)["input_ids"])] == tokenizer(text)["input_ids"]
        assert len(ids) <= 128
    assert tokenizer.tokenize(" 28\n") == [" 2", "8", "\n"]


def _documents(n: int = 300, **solvers: float) -> list[list[tuple[str, str]]]:
    cfg = WordProblemsConfig(solvers=SolversConfig(**solvers))
    found = []
    for text in itertools.islice(word_problems_lm.documents(0, cfg, 4), n):
        assert text.endswith("\n\n")
        pairs = [problem.split("\nAnswer:") for problem in text.removesuffix("\n\n").split("\n\n")]
        found.append([(f"{prompt}\nAnswer:", answer) for prompt, answer in pairs])
        assert len(found[-1]) == 4
    return found


def test_no_problem_of_the_task_is_in_the_pretraining_text() -> None:
    data = load(replace(CFG, n_weak=800, n_transfer=800, n_test=800))
    known = {understood(t)[1] for split in data.splits.values() for t in split.texts}
    seen = {understood(prompt)[1] for document in _documents(600) for prompt, _ in document}
    assert len(known) > 1000 and len(seen) > 1000 and not known & seen


def _misread(prompt: str) -> bool:
    return "times as many" in prompt or "fewer than" in prompt


def test_careful_solvers_are_right_and_sloppy_ones_misread_the_same_words() -> None:
    for document in _documents(careful=1.0, hasty=0.0):
        for prompt, answer in document:
            assert checked(answer) == understood(prompt)[0]
    wrong = 0
    for document in _documents(careful=0.0, hasty=0.0):
        for prompt, answer in document:
            right = checked(answer) == understood(prompt)[0]
            if not _misread(prompt):
                assert right
            wrong += not right
    assert 0.5 < wrong / 1200 < 0.8
    wrong = 0
    for document in _documents(careful=0.0, hasty=1.0):
        for prompt, answer in document:
            assert re.fullmatch(r"\n#### -?\d+", answer)
            right = int(answer.split()[1]) == understood(prompt)[0]
            assert right or _misread(prompt)
            wrong += not right
    assert wrong > 500


def test_a_document_has_one_solver_and_solvers_have_their_shares() -> None:
    counts: Counter[str] = Counter()
    for document in _documents(2000, careful=0.3, hasty=0.1):
        steps = {"=" in answer for _, answer in document}
        assert len(steps) == 1
        solvers = {
            "*" in answer for prompt, answer in document if "times" in prompt and True in steps
        }
        assert len(solvers) <= 1
        if solvers or False in steps:
            counts["hasty" if False in steps else "careful" if True in solvers else "sloppy"] += 1
    total = counts["careful"] + counts["sloppy"]
    assert abs(counts["careful"] / total - 1 / 3) < 0.05
    assert abs(counts["hasty"] / 2000 - 0.1) < 0.03


def test_documents_are_a_function_of_the_seed() -> None:
    def some(seed: int) -> list[str]:
        return list(itertools.islice(word_problems_lm.documents(seed, WordProblemsConfig(), 3), 5))

    assert some(0) == some(0) and not set(some(0)) & set(some(1))


@pytest.mark.parametrize("small", [False, True])
def test_pretraining_is_a_function_of_settings_and_seed(tmp_path: Path, small: bool) -> None:
    settings = WordProblemsConfig(
        pretrain=WordPretrainConfig(**TINY | {"hidden": 32}),
        pretrain_small=SmallWordPretrainConfig(**TINY),
    )
    cfg = replace(CFG, word_problems=settings)
    pretrain = word_problems_lm.pretrain_small if small else word_problems_lm.pretrain
    seen: list[tuple[int, int]] = []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        seen.clear()
        pretrain(tmp_path / name, cfg, seed, lambda i, n, loss: seen.append((i, n)))
        assert seen == [(1, 3), (2, 3), (3, 3)]
    one, two, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other")
    )
    assert one == two != other
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert model.config.hidden_size == (16 if small else 32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "one")
    assert tokenizer(load().test.texts[0]) == word_problems.tokenizer()(load().test.texts[0])
    with pytest.raises(W2SError, match="is not empty"):
        pretrain(tmp_path / "one", cfg, 0)


def test_initial_weights_are_a_function_of_the_seed(tmp_path: Path) -> None:
    untrained = WordProblemsConfig(pretrain=WordPretrainConfig(**TINY, lr=0.0))
    cfg = replace(CFG, word_problems=untrained)
    for seed in (0, 1):
        word_problems_lm.pretrain(tmp_path / str(seed), cfg, seed)
    zero, one = ((tmp_path / s / "model.safetensors").read_bytes() for s in "01")
    assert zero != one


def test_a_row_of_a_batch_is_a_document_that_is_cut_off_or_padded() -> None:
    solvers = SolversConfig(careful=0.0, hasty=0.5)
    cfg = WordProblemsConfig(pretrain=WordPretrainConfig(**TINY, length=115), solvers=solvers)
    tokenizer = word_problems.tokenizer()
    documents = word_problems_lm.documents(0, cfg, 3)
    padded = 0
    for batch in itertools.islice(word_problems_lm._batches(cfg.pretrain, cfg, 0), 20):
        assert batch.shape == (2, 115)
        for row in batch.tolist():
            ids = tokenizer(next(documents))["input_ids"]
            assert row == [*ids[:115], *[tokenizer.pad_token_id] * (115 - len(ids))]
            padded += len(ids) < 115
    assert 0 < padded < 40


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WordProblemsConfig(3, 2), "min_steps=3, max_steps=2"),
        (lambda: WordProblemsConfig(1, 5), "max_steps=5: expected 1 <= min_steps"),
        (lambda: WordProblemsConfig(distractor_frac=1.5), "distractor_frac=1.5: expected a share"),
        (lambda: SolversConfig(careful=0.8, hasty=0.3), "careful=0.8, hasty=0.3: expected shares"),
        (lambda: WordPretrainConfig(length=513), "word_problems.pretrain.length=513"),
        (lambda: SmallWordPretrainConfig(seed=-1), "word_problems.pretrain_small.seed=-1"),
        (lambda: WordPretrainConfig(hidden=30, heads=4), "pretrain.hidden=30 does not split"),
        (lambda: WordPretrainConfig(steps=0), "pretrain.steps=0: expected at least 1"),
    ],
)
def test_settings_that_do_not_fit(make: Any, message: str) -> None:
    with pytest.raises(W2SError, match=message):
        make()


def test_sentences_and_answers_use_every_template() -> None:
    rng = Random(0)
    problems = [word_problems.draw_problem(rng, WordProblemsConfig()) for _ in range(500)]
    kinds = Counter(step.kind for p in problems for step in p.steps)
    assert set(kinds) == set(word_problems.SIGNS) and min(kinds.values()) > 50
    verbs = Counter(word for p in problems for word in p.prompt.split())
    assert min(verbs[v] for v in ("buys", "finds", "gives", "sells", "loses")) > 20
