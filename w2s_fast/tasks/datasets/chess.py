"""Chess puzzles: what is the best move after this game? (Burns et al. 2023 use lichess puzzles).

The puzzles are generated from games of random legal moves: positions in which exactly one move
mates or, with an engine, in which one move is clearly the best. The prompt is the game as a PGN
move list, the answer the move in the same notation. The same seed and settings (and engine, if any)
give the same puzzles. Nothing is downloaded or stored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from w2s_fast.errors import W2SError
from w2s_fast.tasks._answer_parsing import CLASSES, PROMPT
from w2s_fast.tasks._base import Examples, TaskData
from w2s_fast.tasks._chess_engine import find_clear_move, opened
from w2s_fast.tasks._chess_puzzles import find_puzzle
from w2s_fast.tasks._config import ChessConfig, TaskConfig
from w2s_fast.tasks._examples import Item, as_examples

if TYPE_CHECKING:
    from chess import Board, Move

    _Find = Callable[[Random], tuple[Board, Move] | None]

_GAMES_PER_PUZZLE = 200  # games to try per puzzle before the settings count as too strict
_SAN = re.compile(
    r"(?<![\w-])(?:[O0]-[O0](?:-[O0])?|[KQRBN]?[a-h]?[1-8]?x?[a-h][1-8](?:=?[QRBN])?)(?![\w-])"
)


def read(text: str) -> str:
    """Return the first move in a text, without annotations ("+", "#", "!"); "" if there is none."""
    match = _SAN.search(text)
    if match is None:
        return ""
    move = match.group().replace("0", "O")
    return re.sub(r"(?<=[18])(?=[QRBN]$)", "=", move)


class Chess:
    """Generated puzzles, one per game, so each is its own group."""

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """Return the splits; there are no classes to balance.

        Raises:
            W2SError: python-chess is not installed, the engine does not run, or the settings
                allow too few puzzles.
        """
        used: set[str] = set()
        splits: dict[str, Examples] = {}
        with _finder(cfg.chess) as find:
            for part in ("test", "weak", "transfer"):
                size = getattr(cfg, f"n_{part}")
                splits[part] = _puzzles(find, f"{seed}/{part}", size, used, cfg.chess)
        weak, transfer, test = splits["weak"], splits["transfer"], splits["test"]
        data = TaskData(cfg.name, CLASSES, weak, transfer, test)
        return replace(data, kind="generation", read=read).with_prompt(cfg, PROMPT)


@contextmanager
def _finder(cfg: ChessConfig) -> Iterator[_Find]:
    try:
        import chess  # noqa: F401
    except ImportError as error:
        raise W2SError(
            "task 'chess' needs the package 'chess'; run pip install 'w2s-fast[chess]'"
        ) from error
    if cfg.engine is None:
        yield lambda rng: find_puzzle(rng, cfg.mate_in, cfg.plies)
        return
    with opened(cfg.engine) as engine:
        yield lambda rng: find_clear_move(rng, engine, cfg.nodes)


def _puzzles(find: _Find, stream: str, n: int, used: set[str], cfg: ChessConfig) -> Examples:
    """Draw ``n`` puzzles that are not in ``used``, and add them to ``used``."""
    items: list[Item] = []
    for game in range(_GAMES_PER_PUZZLE * n):
        puzzle = find(Random(f"{stream}/{game}"))
        if puzzle is None:
            continue
        board, move = puzzle
        text = _move_list(board)
        if text not in used:
            used.add(text)
            items.append(Item(text, 0, None, answer=f" {board.san(move)}"))
        if len(items) == n:
            return as_examples(items)
    raise W2SError(
        f"task 'chess': {len(items)} puzzles in {_GAMES_PER_PUZZLE * n} games, {n} are needed; "
        f"raise task.chess.plies (now {cfg.plies})"
    )


def _move_list(board: Board) -> str:
    """Return the game as a PGN move list, up to the number of the move to find."""
    played = board.root().variation_san(board.move_stack)
    return f"{played} {board.fullmove_number}." if board.turn else played
