"""Load a data set of the Hugging Face hub, or a local copy of it, as rows for a formatter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.tasks._base import Examples, TaskData
from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks._examples import Item, as_examples, split_items
from w2s_fast.tasks._files import read_table, text_cell
from w2s_fast.tasks._labels import canonical_name
from w2s_fast.tasks._split_files import joined, split_files

Row = Mapping[str, Any]
# Formatting all 3.6 million rows of the largest set takes minutes, and no run uses that many.
_MAX_ROWS = 100_000


@dataclass(frozen=True)
class HubTask:
    """A named data set, formatted as openai/weak-to-strong or EleutherAI/w2s does.

    Three defects of openai/weak-to-strong are avoided: it takes rows from the head of the file
    before shuffling, leaves classes unbalanced, and may put related rows (questions about one
    passage) into two splits. Here rows are shuffled first, classes are balanced (``task.balance``),
    and related rows stay together. The random choices of a formatter depend on the seed and the
    row alone, not on other rows.

    Attributes:
        name: Key in ``TASKS``.
        repo: Name on the hub.
        columns: Columns that the formatter reads.
        class_names: Names of the classes.
        format: Returns the `Item` of a row, or None to drop the row; raises `W2SError` for a bad
            value.
        samples: A few rows in the format of the set, for tests and as documentation.
        train_split: Split of the weak and transfer rows; may be ``test_split``, which then gives
            all three splits.
        test_split: Split of the test rows.
        config: Configuration on the hub, if the set has several.
        revision: Branch on the hub, if it is not the default one.
        kind, prompt, words, read: See `TaskData`.
    """

    name: str
    repo: str
    columns: tuple[str, ...]
    class_names: tuple[str, ...]
    format: Callable[[Row, Random], Item | None]
    samples: tuple[dict[str, Any], ...]
    train_split: str = "train"
    test_split: str = "test"
    config: str | None = None
    revision: str | None = None
    kind: str = "classification"
    prompt: str = "{text}\nIs the answer correct?"
    words: tuple[str, ...] = (" no", " yes")
    read: Callable[[str], str] | None = None

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """Return the splits: test rows from ``test_split``, the others from ``train_split``.

        Raises:
            W2SError: The set is neither on disk nor on the hub, or a value does not fit.
        """
        sources = [f"{self.name} ({split})" for split in self._splits]
        sizes = [cfg.n_weak + cfg.n_transfer, cfg.n_test]
        if len(sources) == 1:
            sizes = [sum(sizes)]
        parts = [
            self._items(self._rows(split, size, cfg, seed), seed)
            for split, size in zip(self._splits, sizes, strict=True)
        ]
        data = split_items(parts, sources, self.class_names, cfg, seed)
        data = replace(data, kind=self.kind, read=self.read)
        return data.with_prompt(cfg, self.prompt, self.words)

    def examples(self, rows: Sequence[Row], seed: int) -> Examples:
        """Format rows.

        Args:
            rows: Rows with at least ``columns``.
            seed: Seed of the formatter's random choices.
        """
        return as_examples(self._items(rows, seed))

    @property
    def _splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.train_split, self.test_split)))

    def _items(self, rows: Sequence[Row], seed: int) -> list[Item]:
        return [item for row in rows if (item := self._item(row, seed)) is not None]

    def _item(self, row: Row, seed: int) -> Item | None:
        # Messages quote the row: its number would mean nothing in a sample of two splits.
        quoted = repr([row.get(name) for name in self.columns])
        shown = quoted if len(quoted) <= 120 else quoted[:117] + "..."
        for name in self.columns:
            if row.get(name) is None:
                raise W2SError(
                    f"{self.name}: no value in column {name!r} of the row {shown}; fill or drop it"
                )
        try:
            return self.format(row, Random(f"{seed}/{quoted}"))
        except W2SError as error:
            raise W2SError(f"{self.name}: {error}; the row is {shown}") from error

    def _rows(self, split: str, need: int, cfg: TaskConfig, seed: int) -> list[Row]:
        """Read one split, or a random sample of a large one that suffices to balance classes."""
        most = max(_MAX_ROWS, 4 * need)
        rng = Random(f"{seed}/{split}")
        if cfg.path is not None:
            table = self._local_table(cfg, Path(cfg.path), split)
            if table.num_rows > most:
                table = table.take(rng.sample(range(table.num_rows), most))
            rows = table.to_pylist()
            return [{k: self._cell(v, k, cfg.encoding) for k, v in row.items()} for row in rows]
        dataset = self._from_hub(split)
        if len(dataset) > most:
            dataset = dataset.select(rng.sample(range(len(dataset)), most))
        return dataset.to_list()

    def _cell(self, value: Any, column_name: str, encoding: str) -> Any:
        """Return a cell with bytes decoded; only a column of structures may hold one."""
        structured = any(isinstance(row[column_name], list | dict) for row in self.samples)
        if structured and not isinstance(value, bytes):
            return value
        return text_cell(value, f"{self.name}: a value in column {column_name!r}", encoding)

    def _local_table(self, cfg: TaskConfig, root: Path, split: str) -> Any:
        if not root.is_dir():
            raise W2SError(f"task.path={root}: no such directory; {self._where()}")
        if self.config is not None and (root / self.config).is_dir():
            root = root / self.config
        files = split_files(root, split)
        if not files:
            raise W2SError(f"task.path={root} has no {split} file; {self._where()}")
        return joined({file: self._columns_of(cfg, file) for file in files})

    def _columns_of(self, cfg: TaskConfig, file: Path) -> Any:
        table = read_table(file, True, cfg.delimiter, cfg.quoted, cfg.encoding)
        missing = [name for name in self.columns if name not in table.column_names]
        if missing:
            raise W2SError(
                f"{file}: no column {missing[0]!r}; {self.name} needs {', '.join(self.columns)}, "
                f"the file has {', '.join(table.column_names)}; {self._where()}"
            )
        return table.select(list(self.columns))

    def _from_hub(self, split: str) -> Any:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise W2SError(
                f"{self.name}: the package 'datasets' is not installed; run pip install "
                f"'w2s-fast[hf]', or use a local copy: {self._where()}"
            ) from error
        try:
            dataset = load_dataset(self.repo, **self._address(), split=split)
            return dataset.select_columns(list(self.columns))
        # The hub client passes on errors of its HTTP library; all of them mean: not loaded.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise W2SError(
                f"{self.name}: {self.repo} could not be loaded from the Hugging Face hub "
                f"({type(error).__name__}: {reason}); connect, or use a local copy: {self._where()}"
            ) from error

    def _address(self) -> dict[str, str]:
        """Return the location in the repository; a converted branch has a folder per config."""
        if self.revision is None:
            return {} if self.config is None else {"name": self.config}
        folder = {} if self.config is None else {"data_dir": self.config}
        return {"revision": self.revision, **folder}

    def _where(self) -> str:
        files = " and ".join(f"{split}.parquet" for split in self._splits)
        nested = any(isinstance(v, list | dict) for row in self.samples for v in row.values())
        config = "" if self.config is None else f" (configuration {self.config})"
        return (
            f"put {files} (or .jsonl{'' if nested else ', .csv'}; columns "
            f"{', '.join(self.columns)}) from https://huggingface.co/datasets/{self.repo}{config} "
            "into a directory and set task.path=DIRECTORY"
        )


def class_index(value: Any, column_name: str, n_classes: int) -> int:
    """Return a label cell as an integer class; CSV cells are strings.

    Raises:
        W2SError: The value is not one of 0 ... n_classes - 1 (for two also true and false).
    """
    words = {str(number): number for number in range(n_classes)}
    if n_classes == 2:
        words |= {"false": 0, "true": 1}
    index = words.get(canonical_name(str(value)).lower())
    if index is None:
        raise W2SError(
            f"{column_name} is {value!r}; expected one of {', '.join(words)}: use a labelled split "
            "of this set"
        )
    return index
