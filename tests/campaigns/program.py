"""The command line as campaigns run it: many small files of labels and transcripts.

Environment: ``W2S_CAMPAIGN_PLAIN`` draws no figure, which takes most of the time of a small run.
``W2S_CAMPAIGN_KILL=TEXT:N`` kills the process before its Nth rename, from the first to a path with
TEXT on.
``W2S_CAMPAIGN_OBEY``: root obeys permissions of files, as other users do.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import os
import signal
import sys
from collections.abc import Iterator
from unittest import mock

from helpers.permissions import obey_permissions

from w2s_fast.cli import main as cli
from w2s_fast.pipeline import experiment
from w2s_fast.pipeline.stages import predict, transcripts

ROWS = 16  # of a file


@contextlib.contextmanager
def small_files(*, plain: bool) -> Iterator[None]:
    """Write parts of ``ROWS`` rows; with ``plain``, no figures."""
    with contextlib.ExitStack() as stack:
        for module in (predict, transcripts):
            stack.enter_context(mock.patch.object(module, "PART_ROWS", ROWS))
        if plain:
            stack.enter_context(mock.patch.object(experiment, "write_report", lambda *_: None))
        yield


def _kill_at(text: str, number: int) -> None:
    """Kill this process before the ``number``th rename, from the first to a path with ``text``."""
    rename, targets = os.replace, list[str]()

    def replace(source: str, target: str) -> None:
        if targets or text in str(target):
            targets.append(str(target))
            if len(targets) == number:
                os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = replace  # type: ignore[assignment]


class _NoPandas(importlib.abc.MetaPathFinder):
    """Hides pandas: pyarrow imports it if there is one, which takes longer than a small run."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def main() -> int:
    """Run the command line."""
    env = os.environ
    if "transformers" in sys.modules:  # a fork: it asks for pandas while it is imported
        sys.meta_path.insert(0, _NoPandas())
    if "W2S_CAMPAIGN_KILL" in env:
        text, _, number = env["W2S_CAMPAIGN_KILL"].rpartition(":")
        _kill_at(text, int(number))
    if "W2S_CAMPAIGN_OBEY" in env:
        obey_permissions()
    with small_files(plain="W2S_CAMPAIGN_PLAIN" in env):
        return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
