"""Chess puzzles from games of random legal moves: positions with one move that mates.

Requires python-chess; callers check that it is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import chess

OPENING_PLIES = 8  # no puzzles before; four moves per side make games differ


def mating_moves(board: chess.Board, moves: Sequence[chess.Move]) -> list[chess.Move]:
    """Return the legal moves that mate at once."""
    mates = []
    may_check = _check_filter(board)
    for move in moves:
        if may_check(move):
            board.push(move)
            if board.is_checkmate():
                mates.append(move)
            board.pop()
    return mates


def forcing_moves(board: chess.Board, moves: Sequence[chess.Move]) -> list[chess.Move]:
    """Return the first two of the legal moves after which every reply allows mate at once."""
    return list(islice((move for move in moves if _forces(board, move)), 2))


def _forces(board: chess.Board, move: chess.Move) -> bool:
    board.push(move)
    replies = list(board.legal_moves)
    forced = bool(replies)
    for reply in replies:
        board.push(reply)
        forced = bool(mating_moves(board, list(board.legal_moves)))
        board.pop()
        if not forced:
            break
    board.pop()
    return forced


def find_puzzle(rng: Random, mate_in: int, plies: int) -> tuple[chess.Board, chess.Move] | None:
    """Play random legal moves until exactly one move mates in ``mate_in``.

    Args:
        rng: Source of the moves.
        mate_in: 1 or 2; a position with a mate in 1 is not a puzzle of mate in 2.
        plies: Longest game, in half moves.

    Returns:
        The position, with the game on its move stack, and the move; None if there is none.
    """
    import chess

    board = chess.Board()
    for ply in range(plies):
        moves = list(board.legal_moves)
        if not moves:
            return None
        if ply >= OPENING_PLIES:
            solutions = mating_moves(board, moves)
            if mate_in == 2:
                solutions = [] if solutions else forcing_moves(board, moves)
            if len(solutions) == 1:
                return board, solutions[0]
        board.push(rng.choice(moves))
    return None


def _check_filter(board: chess.Board) -> Callable[[chess.Move], bool]:
    """Return a fast test that every checking move passes, and few others.

    Testing each legal move by making it would take most of the time of a search.
    """
    import chess

    king = board.king(not board.turn)
    assert king is not None
    lines = (
        (chess.BB_FILE_ATTACKS[king], chess.BB_FILE_MASKS[king]),
        (chess.BB_RANK_ATTACKS[king], chess.BB_RANK_MASKS[king]),
        (chess.BB_DIAG_ATTACKS[king], chess.BB_DIAG_MASKS[king]),
    )
    file, rank, diagonal = (attacks[0] for attacks, _ in lines)  # on an empty board
    reach = {
        chess.PAWN: chess.BB_PAWN_ATTACKS[not board.turn][king],
        chess.KNIGHT: chess.BB_KNIGHT_ATTACKS[king],
        chess.BISHOP: diagonal,
        chess.ROOK: file | rank,
        chess.QUEEN: file | rank | diagonal,
        chess.KING: 0,
    }
    shields = 0  # the first piece on each line from the king: moving it may discover a check
    for attacks, mask in lines:
        shields |= attacks[mask & board.occupied]

    def may_check(move: chess.Move) -> bool:
        piece = board.piece_type_at(move.from_square)
        assert piece is not None
        return bool(
            reach[piece] >> move.to_square & 1
            or shields >> move.from_square & 1
            or move.promotion
            or board.is_castling(move)
            or board.is_en_passant(move)
        )

    return may_check
