"""Names are shown whole where they fit, and stay different where they do not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from w2s_fast.report.names import fit_names, printable, wrap_name

_WORDS = st.sampled_from(
    ["xent", "logconf", "probe_relabel", "aux_coef=0.5", "share=0.25", "mylab.methods:Surest", "é",
     "好的方法", "🙂", "مرحبا", "$x$", "[red]", "<b>", "…", "(2)", "\\n", "\n", "\t", "\u202e",
     "\udc80", "\u0301"]
)  # fmt: skip
_SEPARATORS = st.sampled_from(["+", "|", ":", ",", "/", "", " "])


@st.composite
def _similar_specs(draw: st.DrawFn) -> list[str]:
    """Return specs that share a beginning and an end of random length and differ between them."""

    def spec(least: int, most: int) -> str:
        pairs = draw(st.lists(st.tuples(_WORDS, _SEPARATORS), min_size=least, max_size=most))
        return "".join(word + separator for word, separator in pairs)

    start, end = spec(0, 12), spec(0, 12)
    middles = [spec(1, 3) for _ in range(draw(st.integers(1, 8)))]
    return [start + middle + end for middle in middles]


@settings(max_examples=300, deadline=None)
@given(
    _similar_specs() | st.lists(st.text(max_size=200), max_size=8),
    st.integers(16, 40),
    st.integers(1, 4),
)
def test_different_names_stay_different_and_fit(names: list[str], width: int, lines: int) -> None:
    shown = fit_names(names, width, lines)
    joined = [text.replace("\n", "") for text in shown]
    assert len(set(joined)) == len(set(names))
    for name, text in zip(names, shown, strict=True):
        assert len(text.split("\n")) <= lines
        assert all(cell_len(line) <= width for line in text.split("\n"))
        if cell_len(printable(name)) <= width:
            assert text == printable(name)


def test_a_long_name_breaks_after_separators() -> None:
    assert wrap_name("probe_relabel:probe=logreg|probe+logconf:aux_coef=0.5", 28) == [
        "probe_relabel:probe=logreg|", "probe+logconf:aux_coef=0.5"
    ]  # fmt: skip
    assert wrap_name("x" * 50, 20) == ["x" * 20, "x" * 20, "x" * 10]


def test_shortened_names_show_where_they_differ() -> None:
    start, end = "probe_relabel:probe=logreg,share=0.", "|" + "bootstrap|" * 9 + "probe+xent"
    names = [f"{start}{share}{end}" for share in (25, 35, 45)]
    for share, text in zip((25, 35, 45), fit_names(names, 24, 2), strict=True):
        assert f"share=0.{share}" in text.replace("\n", "") and "…" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb", r"a\nb"), ("a\\nb", r"a\\nb"), ("\x1b[31m", r"\x1b[31m"), ("\udc80", r"\udc80"),
     ("a\u202eb", r"a\u202eb"), ("é好🙂", "é好🙂"), ("$x$ [b] <b>", "$x$ [b] <b>")],
)  # fmt: skip
def test_characters_that_show_nothing_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
