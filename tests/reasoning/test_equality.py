"""Equality of answers: known pairs, the same verdict in both orders, and no silent "unequal"."""

from __future__ import annotations

import os
import signal
import threading
import time
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from w2s_fast.errors import W2SError
from w2s_fast.reasoning import Verdict, answers_equal, compare_answers, equality, is_readable
from w2s_fast.reasoning import _math_process as process_module

EQUAL, DIFFERENT = Verdict.EQUAL, Verdict.DIFFERENT
UNREADABLE, UNDECIDED = Verdict.UNREADABLE, Verdict.UNDECIDED
NEEDS_MATH = pytest.mark.skipif(
    process_module.importlib.util.find_spec("math_verify") is None, reason="no math-verify"
)
RULES = [pytest.param("math", marks=NEEDS_MATH), "number", "string"]
VALUES = st.tuples(st.integers(-(10**9), 10**9), st.integers(0, 3))

# answers, and the verdicts of math, number, string
KNOWN = [
    ("9", "2+7=9", EQUAL, EQUAL, DIFFERENT),
    ("3", "3.00", EQUAL, EQUAL, DIFFERENT),
    ("300,000", "300000", EQUAL, EQUAL, DIFFERENT),
    ("75", "75%", EQUAL, EQUAL, DIFFERENT),
    ("-$1,850", "-1850.0", EQUAL, EQUAL, DIFFERENT),
    ("-5", "5", DIFFERENT, DIFFERENT, DIFFERENT),
    ("1/2", "0.5", EQUAL, DIFFERENT, DIFFERENT),
    (r"\frac{1}{2}", "0.5", EQUAL, DIFFERENT, DIFFERENT),
    ("0.333333", "1/3", EQUAL, DIFFERENT, DIFFERENT),
    ("0.3333333", "0.33333331", EQUAL, DIFFERENT, DIFFERENT),
    ("2^{10}", "1024", EQUAL, DIFFERENT, DIFFERENT),
    ("x + 1", "1+x", EQUAL, EQUAL, DIFFERENT),
    ("15 apples", "15", EQUAL, EQUAL, DIFFERENT),
    (" 15 ", "15", EQUAL, EQUAL, EQUAL),
    ("7", "8", DIFFERENT, DIFFERENT, DIFFERENT),
    ("1.5", "1.25", DIFFERENT, DIFFERENT, DIFFERENT),
    ("a", "b", DIFFERENT, UNREADABLE, DIFFERENT),
    ("no", "on", UNREADABLE, UNREADABLE, DIFFERENT),
    ("no answer", "no answer", UNREADABLE, UNREADABLE, EQUAL),
    ("", "", UNREADABLE, UNREADABLE, UNREADABLE),
    (" ", "3", UNREADABLE, UNREADABLE, UNREADABLE),
]


@pytest.mark.parametrize("name", RULES)
def test_known_answers(name: str) -> None:
    position = ("math", "number", "string").index(name)
    for one, other, *verdicts in KNOWN:
        expected = verdicts[position]
        for a, b in ((one, other), (other, one)):
            assert compare_answers(a, b, name) is expected, (a, b)
            known = {EQUAL: True, DIFFERENT: False}.get(expected)
            assert answers_equal(a, b, name) is known, (a, b)


def spelled(value: tuple[int, int], commas: bool, zeros: int) -> str:
    digits, places = value
    whole, rest = divmod(abs(digits), 10**places)
    text = f"{whole:,}" if commas else str(whole)
    decimals = f"{rest:0{places}d}" if places else ""
    decimals += "0" * zeros
    return f"{'-' if digits < 0 else ''}{text}{'.' + decimals if decimals else ''}"


@settings(deadline=None)
@given(VALUES, VALUES, st.booleans(), st.integers(0, 2))
@example((1000, 0), (-1000, 0), True, 1)
def test_numbers_are_equal_by_value_in_any_spelling(
    first: tuple[int, int], second: tuple[int, int], commas: bool, zeros: int
) -> None:
    one, same = spelled(first, commas, zeros), spelled(first, not commas, 0)
    assert compare_answers(one, same, "number") is EQUAL
    equal = Fraction(first[0], 10 ** first[1]) == Fraction(second[0], 10 ** second[1])
    verdict = compare_answers(one, spelled(second, False, zeros), "number")
    assert verdict is (EQUAL if equal else DIFFERENT)


@NEEDS_MATH
@settings(deadline=None)
@given(VALUES, VALUES, st.booleans(), st.integers(0, 1))
def test_the_shortcut_of_numbers_is_math_verify(
    first: tuple[int, int], second: tuple[int, int], commas: bool, zeros: int
) -> None:
    for a, b in ((first, second), (first, first)):
        one, other = spelled(a, commas, zeros), spelled(b, False, 0)
        assert compare_answers(one, other).name == equality._math.compare(one, other), (one, other)


@NEEDS_MATH
def test_it_works_in_threads_and_leaves_alarms_alone() -> None:
    """math-verify itself raises in a thread, and switches an alarm of the caller off."""
    rang: list[float] = []
    previous = signal.signal(signal.SIGALRM, lambda *_: rang.append(time.monotonic()))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        verdicts: list[Verdict] = []
        threads = [
            threading.Thread(
                target=lambda k=k: verdicts.append(compare_answers(f"{k}/7", f"{2 * k}/14"))
            )
            for k in range(1, 9)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        compare_answers("1/17", "2/34")
        end = time.monotonic() + 5
        while not rang and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, previous)
    assert verdicts == [EQUAL] * 8 and len(rang) == 1


@NEEDS_MATH
def test_what_takes_too_long_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare_answers("9^{9^{9}}", "2") is UNDECIDED
    assert answers_equal("9^{9^{9}}", "2") is None
    monkeypatch.setattr(process_module, "ANSWER_S", 0.05)  # the worker's own limit is longer
    assert compare_answers("9^{9^{8}}", "3") is UNDECIDED
    assert equality._math._process is None, "it is killed"
    monkeypatch.undo()
    assert compare_answers("3/9", "1/3") is EQUAL, "another worker is started"


@NEEDS_MATH
def test_a_worker_that_dies_is_replaced() -> None:
    assert compare_answers("1/11", "2/22") is EQUAL
    worker = equality._math._process
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert compare_answers("1/13", "2/26") is UNDECIDED
    assert compare_answers("1/19", "2/38") is EQUAL


@NEEDS_MATH
def test_a_forked_process_has_a_worker_of_its_own() -> None:
    assert compare_answers("3/11", "6/22") is EQUAL
    worker = equality._math._process
    for compares in (True, False):
        child = os.fork()
        if child == 0:  # a failed assertion would go on as a second pytest
            ok = not compares or compare_answers("3/13", "6/26") is EQUAL
            own = not compares or equality._math._process is not worker
            equality._math.close()
            os._exit(0 if ok and own else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    assert worker is not None and worker.poll() is None, "the worker of this process lives"
    assert compare_answers("3/17", "6/34") is EQUAL


@NEEDS_MATH
def test_a_derivation_is_no_answer() -> None:
    for length, verdict in ((1000, EQUAL), (2001, UNREADABLE)):
        assert compare_answers("1" * length, "1" * length) is verdict


@pytest.mark.parametrize("rule", RULES)
def test_an_answer_is_readable_if_it_equals_itself(rule: str) -> None:
    assert is_readable("3/4", rule) and not is_readable("", rule)
    assert is_readable("whatever", rule) is (rule == "string")


def test_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        W2SError, match="rule is 'strings'; expected one of math, number, string; d"
    ):
        answers_equal("1", "1", "strings")
    monkeypatch.setattr(process_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        W2SError, match=r"pip install 'w2s-fast\[reasoning\]', or compare with rule"
    ):
        answers_equal("1", "1", "math")
    assert answers_equal("1", "1.0", "number") is True


def test_a_library_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    broken = process_module.Path(str(tmp_path)) / "worker.py"
    broken.write_text("raise SystemExit(3)")
    monkeypatch.setattr(process_module, "_WORKER", broken)
    monkeypatch.setattr(process_module, "check_installed", lambda: None)
    with pytest.raises(W2SError, match="math-verify is installed but does not start"):
        process_module.MathProcess().compare("1", "1")
