"""The card of a recipe: what was published, what the run needs, and how it differs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError, nearest
from w2s_fast.files import read_text

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Model:
    """A model on the hub, and the folder where the run expects it.

    Attributes:
        hub: Name on the Hugging Face hub.
        folder: Folder of the checkpoint, relative to the working directory.
    """

    hub: str
    folder: str

    @property
    def download(self) -> str:
        """The command that fetches it."""
        return f"hf download {self.hub} --local-dir {self.folder}"


@dataclass(frozen=True)
class Data:
    """A data set of a run.

    Attributes:
        source: Name on the Hugging Face hub, or where else it is published.
        path: File or folder where the run expects it; None: the run reads it from the hub.
        content: What the file holds; "" if the run reads the published format.
    """

    source: str
    path: str | None = None
    content: str = ""


@dataclass(frozen=True)
class Expected:
    """A published number.

    Attributes:
        quantity: What was measured, in the names of this package.
        value: The number, or what is said of it.
        source: Where it stands.
    """

    quantity: str
    value: str
    source: str


@dataclass(frozen=True)
class Card:
    """What a recipe reproduces.

    Attributes:
        name: Name of the recipe.
        title: The experiment in a line.
        paper: Its source.
        models: Models to download.
        data: Data sets.
        expected: Published numbers.
        differences: What differs from the publication.
        devices: Devices x hosts that the cost is computed for, such as "8x1".
        tokens: Tokens of a row in that computation.
        student_config: The student's config.json, of which the cost is computed.
    """

    name: str
    title: str
    paper: str
    models: tuple[Model, ...]
    data: tuple[Data, ...]
    expected: tuple[Expected, ...]
    differences: tuple[str, ...]
    devices: str
    tokens: int
    student_config: dict[str, Any]


def recipe_names() -> tuple[str, ...]:
    """Return the names of all recipes, sorted."""
    return tuple(sorted(path.parent.name for path in _FOLDER.glob("*/card.yaml")))


def load_card(name: str) -> Card:
    """Return the card of a recipe.

    Raises:
        W2SError: There is no recipe of that name.
    """
    import yaml

    values = yaml.safe_load(read_text(_folder(name) / "card.yaml"))
    return Card(
        name=name,
        models=tuple(Model(**row) for row in values.pop("models")),
        data=tuple(Data(**row) for row in values.pop("data")),
        expected=tuple(Expected(**row) for row in values.pop("expected")),
        differences=tuple(values.pop("differences")),
        **values,
    )


def run_file(name: str) -> Path:
    """Return the configuration file of a recipe's run; raises as ``load_card`` does."""
    return _folder(name) / "run.yaml"


def toy_file(name: str) -> Path:
    """Return the configuration file of a recipe's toy twin; raises as ``load_card`` does."""
    return _folder(name) / "toy.yaml"


def _folder(name: str) -> Path:
    names = recipe_names()
    if name not in names:
        raise W2SError(
            f"no recipe {name!r}; expected one of {', '.join(names)}{nearest(name, names)}"
        )
    return _FOLDER / name
