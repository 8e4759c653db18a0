"""Samples that were generated elsewhere, in a file of JSON lines or Parquet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError, nearest
from w2s_fast.files import write_bytes
from w2s_fast.paths import user_path
from w2s_fast.sampling.protocol import check_request
from w2s_fast.tasks._files import read_table


class FileSampler:
    """Returns the finished samples of a prompt, in the order of the file.

    A row is one sample, or a list of samples of one prompt. Several rows with the same key are
    several samples. A file has one set of samples, which every seed returns.

    Args:
        path: A .jsonl or .parquet file.
        text: Column of the samples: texts, or lists of texts.
        key: Column of the prompts, or of ids: `sample` is then given ids.

    Raises:
        W2SError: The file cannot be read, a column is missing, or a value does not fit.
    """

    def __init__(self, path: str | Path, *, text: str = "text", key: str = "prompt") -> None:
        self.path, self.key = user_path(path, "path"), key
        table = read_table(self.path)
        for name in (text, key):
            if table.column_names.count(name) != 1:
                raise W2SError(
                    f"{self.path} has the columns {', '.join(table.column_names)}; expected one "
                    f"named {name!r}{nearest(name, table.column_names)}; rename it, or pass text= "
                    "and key="
                )
        self._samples: dict[str, list[str]] = {}
        columns = (table.column(name).to_pylist() for name in (key, text))
        for row, (row_key, value) in enumerate(zip(*columns, strict=True)):
            texts = self._texts(row, value, text)
            self._samples.setdefault(self._name(row, row_key), []).extend(texts)

    def sample(self, prompts: Sequence[str], n: int, *, seed: int = 0) -> list[list[str]]:
        """Return the first n samples of each prompt; see `Sampler`.

        Args:
            prompts: N values of the column ``key``.
            n: Samples a prompt.
            seed: Not used.

        Raises:
            W2SError: A prompt is not in the file, or has fewer than n samples there.
        """
        check_request(prompts, n)
        missing = [p for p in prompts if p not in self._samples]
        if missing:
            raise W2SError(
                f"{self.path} has no sample of {len(missing)} of {len(prompts)} prompts, the first "
                f"is {missing[0]!r}; expected one in column {self.key!r}: generate what is missing"
            )
        short = [p for p in prompts if len(self._samples[p]) < n]
        if short:
            raise W2SError(
                f"{self.path} has {len(self._samples[short[0]])} samples of {short[0]!r}, and "
                f"fewer than n={n} of {len(short)} prompts in all; generate more, or use a smaller "
                "n"
            )
        return [self._samples[p][:n] for p in prompts]

    def _name(self, row: int, value: Any) -> str:
        """Return the key of a row; numbers are ids, and an id may be passed as a text."""
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise W2SError(
                f"{self.path}: row {row + 1} of column {self.key!r} is {value!r}; expected a "
                "prompt or an id"
            )
        return str(value)

    def _texts(self, row: int, value: Any, column: str) -> list[str]:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise W2SError(
                f"{self.path}: row {row + 1} of column {column!r} is {value!r}; expected a text "
                "or a list of texts, '' for an empty one"
            )
        return texts


def write_samples(
    path: str | Path, prompts: Sequence[str], samples: Sequence[Sequence[str]]
) -> None:
    """Write samples as JSON lines that `FileSampler` reads, whole or not at all.

    Args:
        path: A .jsonl file.
        prompts: N different prompts.
        samples: N lists of texts.

    Raises:
        W2SError: The numbers of prompts and lists differ, or a prompt occurs twice.
    """
    if len(prompts) != len(samples) or len(set(prompts)) != len(prompts):
        raise W2SError(
            f"{len(prompts)} prompts, {len(set(prompts))} of them different, and {len(samples)} "
            "lists of samples; expected a list for each of the different prompts"
        )
    rows = zip(prompts, samples, strict=True)
    lines = [json.dumps({"prompt": p, "text": list(t)}, ensure_ascii=False) + "\n" for p, t in rows]
    write_bytes(user_path(path, "path"), "".join(lines).encode())
