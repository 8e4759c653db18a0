"""The program that compares answers with math-verify, in a process of its own.

math-verify bounds its time with SIGALRM. That works in the main thread only, and ends an alarm that
the caller has set; a process of its own has neither problem, and can be killed.

A line of standard input is ``[first, second]`` in JSON, a line of standard output the name of a
`Verdict`; the first line of output says that the program is ready.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from functools import lru_cache
from typing import Any

TIMEOUT_S = 3
_COMMAND = re.compile(r"\\[A-Za-z]+|\b(?:sqrt|sin|cos|tan|log|ln|exp|pi)\b")
_WORD = re.compile(r"[A-Za-z]{2,}")
_DELIMITER = re.compile(r"\$|\\\(|\\\[|\\boxed")


@lru_cache(maxsize=4096)
def read(answer: str) -> list[Any]:
    """Return the expressions in an answer; none if it has no formula or number.

    math-verify finds formulas in prose, or between delimiters. An answer that is a formula gets
    delimiters: without them "2^{10}" would be read as 2, and with them words as products of
    letters.
    """
    from math_verify import parse

    has_words = _WORD.search(_COMMAND.sub("", answer)) is not None
    text = answer if has_words or _DELIMITER.search(answer) else f"${answer}$"
    parsed = parse(text, parsing_timeout=TIMEOUT_S)
    return parsed if any(not isinstance(p, str) for p in parsed) else []


def compare(first: str, second: str) -> str:
    """Return the verdict on two answers; ``verify`` has a direction, equality has none."""
    from math_verify import verify
    from math_verify.errors import TimeoutException

    one, other = read(first), read(second)
    if not one or not other:
        return "UNREADABLE"
    try:
        options = {"timeout_seconds": TIMEOUT_S, "raise_on_error": True}
        same = verify(one, other, **options) or verify(other, one, **options)
    except (Exception, TimeoutException):  # TimeoutException derives from BaseException
        return "UNDECIDED"
    return "EQUAL" if same else "DIFFERENT"


def main() -> None:
    """Answer line by line until the input ends."""
    import math_verify  # noqa: F401  # before it is ready, so that a failure is one to start

    logging.disable(logging.CRITICAL)
    output, sys.stdout = sys.stdout, sys.stderr  # nothing else may write among the verdicts
    print("ready", file=output, flush=True)
    for line in sys.stdin:
        print(compare(*json.loads(line)), file=output, flush=True)


if __name__ == "__main__":
    main()
