"""Whether two tokenizers give the same ids to the same tokens."""

from __future__ import annotations

from typing import Any

from w2s_fast.errors import W2SError


def check_same_vocabulary(first: Any, second: Any) -> int:
    """Return the number of tokens of two tokenizers of transformers that agree on all of them.

    It is the ``vocab_size`` of ``LogitArithmetic`` for models that pad their heads differently.

    Raises:
        W2SError: with the first id whose token differs, or a token that one of them lacks.
    """
    ours, theirs = first.get_vocab(), second.get_vocab()
    by_id, other_by_id = ({i: t for t, i in v.items()} for v in (ours, theirs))
    for i in sorted(by_id.keys() | other_by_id.keys()):
        if by_id.get(i) != other_by_id.get(i):
            raise W2SError(
                f"token {i} is {by_id.get(i)!r} in the first vocabulary and {other_by_id.get(i)!r} "
                "in the second; expected the same tokens, because logits are added by token id: "
                "use models of one family"
            )
    return max(by_id) + 1
