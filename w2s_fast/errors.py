"""The exception that users see, and hints for misspelled and renamed names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class W2SError(ValueError):
    """Bad input; the message is one line with the value, what was expected, and the fix."""


class W2SKeywordError(W2SError, TypeError):
    """A call with an unknown keyword; it is also a TypeError, as Python raises."""


class DataWarning(UserWarning):
    """Data that can be used but may not be what the user meant."""


class PreferenceWarning(DataWarning):
    """A beta that almost surely belongs to another form of the preference loss."""


# Settings, methods and kinds by their old name: an old name fails with the new one as a hint.
RENAMED = {
    "threshold": "threshold_scope",
    "zero": "zero_stage",
    "deepspeed": "deepspeed_config",
    "cache": "cache_dir",
    "out": "output_dir",
    "chain": "intermediate_models",
    "writer": "transcript_writer",
    "aux": "aux_coef",
    "frac": "step_frac",
    "tune_lm": "generative_finetuning",
    "oracle_stop": "ground_truth_early_stop",
    "classes": "classification",
    "answers": "generation",
}


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def terminal_line(message: object, limit: int = 2000) -> str:
    """Return a message as one line that a terminal shows: no control characters, no end is lost.

    Args:
        message: The message or exception.
        limit: Most characters; the middle of a longer message, which repeats a value, is left out.
    """
    line = " ".join(str(message).split())
    if len(line) > limit:
        line = f"{line[: limit // 2]} [...] {line[-limit // 2 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the message of an exception as one line of at most ``limit`` characters."""
    return " ".join(str(error).split())[:limit]


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of ``names``, or an empty string.

    A name, or a part of a dotted one, that was renamed is closest to its new name.
    """
    names = list(names)
    renamed = ".".join(RENAMED.get(part, part) for part in name.split("."))
    if renamed != name and renamed in names:
        return f"; it is now called {renamed!r}"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
