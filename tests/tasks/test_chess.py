"""Chess puzzles: the move is the only mate, the game leads to it, the seed decides."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import chess
import pytest
from helpers.task_data import all_columns, check_schema, fails

from w2s_fast.tasks import ChessConfig, Examples, TaskConfig, get_task
from w2s_fast.tasks._chess_puzzles import _check_filter, find_puzzle, forcing_moves, mating_moves
from w2s_fast.tasks.datasets import chess as task

CFG = TaskConfig(name="chess", n_weak=4, n_transfer=6, n_test=4, balance=True)
# A known mate in two: 1. Ra6 and either the pawn takes it and 2. b7 mates, or 2. Rxa7 does.
MORPHY = "kbK5/pp6/1P6/8/8/8/8/R7 w - - 0 1"


def _board(text: str) -> chess.Board:
    """The position after a PGN move list."""
    board = chess.Board()
    for word in text.split():
        if not word.endswith("."):
            board.push_san(word)
    return board


def _mates(board: chess.Board) -> list[str]:
    """Every mating move, found the slow way."""
    mates = []
    for move in list(board.legal_moves):
        name = board.san(move)
        board.push(move)
        mates += [name] if board.is_checkmate() else []
        board.pop()
    return mates


def _check_mates(part: Examples) -> None:
    assert part.answers is not None
    for text, answer in zip(part.texts, part.answers, strict=True):
        assert _mates(_board(text)) == [answer.strip()]


def test_puzzles_have_one_solution_and_depend_on_the_seed() -> None:
    data, again = (get_task("chess").load(CFG, 0) for _ in range(2))
    check_schema(data, CFG)
    assert all_columns(data) == all_columns(again)
    for part in (data.weak, data.transfer, data.test):
        _check_mates(part)
    more = get_task("chess").load(replace(CFG, n_weak=6), 0)
    assert more.test.ids == data.test.ids and more.weak.ids[:4] == data.weak.ids
    assert not set(get_task("chess").load(CFG, 1).test.ids) & set(data.test.ids)


def test_a_prompt_ends_where_the_answer_goes() -> None:
    data = get_task("chess").load(replace(CFG, n_weak=10), 0)
    assert data.weak.answers is not None
    turns = set()
    for text, answer in zip(data.weak.texts, data.weak.answers, strict=True):
        whole = text + answer
        board = _board(whole)
        assert board.is_checkmate()
        assert chess.Board().variation_san(board.move_stack) == whole
        turns.add(board.turn)
    assert turns == {chess.WHITE, chess.BLACK}


def test_known_mates() -> None:
    fool = _board("1. f3 e5 2. g4")
    assert mating_moves(fool, list(fool.legal_moves)) == [chess.Move.from_uci("d8h4")]
    morphy = chess.Board(MORPHY)
    moves = list(morphy.legal_moves)
    assert mating_moves(morphy, moves) == []
    assert forcing_moves(morphy, moves) == [chess.Move.from_uci("a1a6")]
    assert morphy.fen() == MORPHY  # the search leaves the position as it was
    stalemate = chess.Board("k7/8/1K6/8/8/8/8/2Q5 w - - 0 1")
    assert forcing_moves(stalemate, [chess.Move.from_uci("c1c7")]) == []


def test_mate_in_two_has_no_shorter_mate() -> None:
    found = find_puzzle(Random(42), 2, 60)
    assert found is not None
    board, move = found
    assert _mates(board) == []
    board.push(move)
    assert board.legal_moves.count() > 0
    for reply in list(board.legal_moves):
        board.push(reply)
        assert _mates(board)
        board.pop()


def test_every_check_passes_the_filter() -> None:
    """Also discovered, castling, promoting and en passant checks, on 1000 random positions."""
    checks = 0
    for game in range(10):
        rng, board = Random(game), chess.Board()
        for _ in range(100):
            moves = list(board.legal_moves)
            if not moves:
                break
            may_check = _check_filter(board)
            givers = [move for move in moves if board.gives_check(move)]
            assert all(may_check(move) for move in givers)
            checks += len(givers)
            board.push(rng.choice(moves))
    assert checks > 250
    castling = chess.Board("5k2/8/8/8/8/8/8/4K2R w K - 0 1")
    assert castling.gives_check(move := chess.Move.from_uci("e1g1"))
    assert _check_filter(castling)(move)
    passant = chess.Board("8/8/8/k2pP2R/8/8/8/K7 w - d6 0 1")  # both pawns leave the line
    assert passant.gives_check(move := chess.Move.from_uci("e5d6"))
    assert _check_filter(passant)(move)


@pytest.mark.parametrize(
    ("text", "move"),
    [
        (" Qxf7#", "Qxf7"),
        ("Nf3+ and wins", "Nf3"),
        ("12. e4 e5", "e4"),
        ("I play exd5!", "exd5"),
        ("O-O-O#", "O-O-O"),
        ("0-0", "O-O"),
        ("e8=Q+", "e8=Q"),
        ("e8Q", "e8=Q"),
        ("Rad1", "Rad1"),
        ("N1xd2", "N1xd2"),
        ("the best move is clear", ""),
        ("i9 z4 K10", ""),
        ("", ""),
    ],
)
def test_the_move_that_is_read(text: str, move: str) -> None:
    assert task.read(text) == move
    assert task.read(move) == move


def test_settings_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(lambda: ChessConfig(mate_in=3), "chess.mate_in=3", "1 or 2")
    fails(lambda: ChessConfig(plies=5), "chess.plies=5")
    fails(lambda: ChessConfig(nodes=0), "chess.nodes=0")
    load = get_task("chess").load
    few = replace(CFG, n_weak=2, n_transfer=2, n_test=2, chess=ChessConfig(plies=10))
    monkeypatch.setattr(task, "_GAMES_PER_PUZZLE", 2)
    fails(lambda: load(few, 0), "puzzles in 4 games", "task.chess.plies (now 10)")
    engine = replace(CFG, chess=ChessConfig(engine=str(tmp_path / "none")))
    fails(lambda: load(engine, 0), "task.chess.engine=", "does not run", "Stockfish")
    engine = replace(CFG, chess=ChessConfig(engine=sys.executable))
    monkeypatch.setitem(sys.modules, "chess", None)
    fails(lambda: load(CFG, 0), "package 'chess'", "w2s-fast[chess]")


@pytest.mark.skipif(shutil.which("stockfish") is None, reason="no stockfish on the path")
def test_an_engine_decides() -> None:
    cfg = replace(CFG, chess=ChessConfig(engine=shutil.which("stockfish"), nodes=500))
    data, again = (get_task("chess").load(cfg, 0) for _ in range(2))
    check_schema(data, cfg)
    assert all_columns(data) == all_columns(again)
    assert data.test.answers is not None
    for text, answer in zip(data.test.texts, data.test.answers, strict=True):
        _board(text).parse_san(answer.strip())  # legal
