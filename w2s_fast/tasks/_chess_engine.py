"""Positions with one clearly best move, by a chess engine, after random legal moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING

from w2s_fast.errors import W2SError
from w2s_fast.tasks._chess_puzzles import OPENING_PLIES

if TYPE_CHECKING:
    import chess
    from chess.engine import SimpleEngine

_MOST_PLIES = 40
_MARGIN = 200  # centipawns between the best move and the second best
_OPTIONS = {"Threads": 1, "Hash": 1}  # equal on all machines; a hash of 1 MB is cleared quickly
_MATE = 100_000  # score of a mate, in centipawns


@contextmanager
def opened(path: str) -> Iterator[SimpleEngine]:
    """Start a UCI engine on one thread, and stop it at the end.

    Raises:
        W2SError: The engine does not start or stops responding.
    """
    from chess.engine import EngineError, SimpleEngine

    try:
        with SimpleEngine.popen_uci(path) as engine:
            engine.configure({k: v for k, v in _OPTIONS.items() if k in engine.options})
            yield engine
    except (OSError, EngineError, TimeoutError) as error:
        raise W2SError(
            f"task.chess.engine={path!r} does not run as a chess engine "
            f"({type(error).__name__}: {error}); give the path of a program that speaks UCI, such "
            "as Stockfish"
        ) from error


def find_clear_move(
    rng: Random, engine: SimpleEngine, nodes: int
) -> tuple[chess.Board, chess.Move] | None:
    """Play random legal moves and let the engine evaluate the position.

    Args:
        rng: Source of the moves.
        engine: The engine; its memory is cleared, so that evaluations are independent.
        nodes: Number of positions it searches.

    Returns:
        The position and its best move; None if the game ended or the second-best move is as good.
    """
    import chess
    from chess.engine import Limit

    board = chess.Board()
    for _ in range(rng.randint(OPENING_PLIES, _MOST_PLIES)):
        moves = list(board.legal_moves)
        if not moves:
            return None
        board.push(rng.choice(moves))
    if board.legal_moves.count() < 2:
        return None
    lines = engine.analyse(board, Limit(nodes=nodes), multipv=2, game=object())
    scores = [line["score"].pov(board.turn).score(mate_score=_MATE) for line in lines]
    return (board, lines[0]["pv"][0]) if scores[0] - scores[1] >= _MARGIN else None
