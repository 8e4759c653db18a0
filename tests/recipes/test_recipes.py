"""Recipes: cards, configurations, toy twins, and the command that lists, shows and runs them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import ranks
from helpers.locales import ascii_locale
from helpers.paths import ROOT

from w2s_fast.cli.main import main
from w2s_fast.cli.parse import load_config
from w2s_fast.cli.plan import n_devices
from w2s_fast.cli.recipe import estimate
from w2s_fast.config import RunConfig, validate
from w2s_fast.models import ModelConfig
from w2s_fast.models.backbone import BUILT_IN
from w2s_fast.recipes import load_card, recipe_names, run_file, toy_file

NAMES = recipe_names()
PAPERS = (
    "2312.09390", "EleutherAI", "2501.13124", "2410.12621", "2407.13647", "2507.06187",
    "2406.11431", "2506.18203", "automated-w2s-research",
)  # fmt: skip
# Settings of a training in which a toy twin may differ: its models and data are small.
SIZES = {
    "epochs", "lr", "batch_size", "micro_batch_size", "max_length", "gradient_checkpointing",
    "zero_stage",
}  # fmt: skip
# Settings that make a test of a twin shorter than the twin; texts need theirs to be of use at all.
FEWER = (
    "--task.pretrain.steps=20", "--task.n_transfer=64", "--task.n_test=40",
    "--student_train.epochs=1",
)  # fmt: skip


def run_of(name: str) -> RunConfig:
    return load_config(paths=[run_file(name)])


def toy_of(name: str) -> RunConfig:
    return load_config(paths=[toy_file(name)])


def kinds_of(cfg: RunConfig) -> list[str]:
    """The methods without their fields."""
    return [re.sub(r":[^|@]*", "", spec) for spec in cfg.methods]


def test_every_paper_has_a_recipe() -> None:
    papers = " ".join(load_card(name).paper for name in NAMES)
    assert [p for p in PAPERS if p not in papers] == [] and len(NAMES) == len(PAPERS)


def test_cards_are_read_in_every_locale(capsys: pytest.CaptureFixture[str]) -> None:
    with ascii_locale():
        cards = [load_card(name) for name in NAMES]
        assert main(["recipe", "show", NAMES[0], "--yaml"]) == 0
    assert not all(str(card).isascii() for card in cards)
    assert capsys.readouterr().out == run_file(NAMES[0]).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
class TestRecipe:
    def test_its_card_names_what_the_run_reads(self, name: str) -> None:
        card, cfg = load_card(name), run_of(name)
        used = {cfg.weak.source, cfg.student.source, *cfg.intermediate_models} - set(BUILT_IN)
        assert {model.folder for model in card.models} == used
        files = {path for path in (cfg.task.path, cfg.task.conflict_path) if path is not None}
        places = {data.path for data in card.data if data.path}
        assert all(any(f.startswith(place) for place in places) for f in files)
        assert bool(files) == bool(places)
        assert card.expected and card.differences and card.paper and card.title

    def test_its_run_is_valid(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        cfg, there = run_of(name), ModelConfig(str(tmp_path))
        intermediate = tuple(str(tmp_path) for _ in cfg.intermediate_models)
        weak = cfg.weak if cfg.weak.source in BUILT_IN else there
        validate(replace(cfg, weak=weak, student=there, intermediate_models=intermediate))
        assert cfg.output_dir == f"out/{name}"

    def test_its_twin_differs_in_models_data_and_sizes(self, name: str) -> None:
        run, toy = run_of(name), toy_of(name)
        validate(toy)
        assert toy.output_dir == f"{run.output_dir}-toy"
        for field in ("losses", "weak_calibration"):
            assert getattr(run, field) == getattr(toy, field)
        # Pairs of a conflicting objective need a task of pairs.
        assert kinds_of(toy) == [
            k for k in kinds_of(run) if "implicit" not in k or k in kinds_of(toy)
        ]
        assert len(run.intermediate_models) == len(toy.intermediate_models)
        assert run.supervisors.label_model == toy.supervisors.label_model
        for block in ("weak_train", "student_train"):
            one, other = vars(getattr(run, block)), vars(getattr(toy, block))
            assert {key for key in one if one[key] != other[key]} <= SIZES
        assert run.student.lora_rank == toy.student.lora_rank or name == "reasoning_gsm8k"

    def test_its_cost_is_that_of_the_named_student(self, name: str) -> None:
        card, cfg = load_card(name), run_of(name)
        (hub,) = (m.hub for m in card.models if m.folder == cfg.student.source)
        parameters = estimate(card, cfg, n_devices(card.devices)).counts.parameters
        size = re.search(r"([\d.]+)[bB](?![a-z])", hub)
        billions = (
            float(size[1])
            if size
            else {"gpt2-xl": 1.56, "ModernBERT-large": 0.395}[hub.split("/")[1]]
        )
        assert parameters / 1e9 == pytest.approx(billions, rel=0.07)

    @pytest.mark.slow
    def test_its_twin_runs(self, name: str, tmp_path: Path) -> None:
        toy = toy_of(name)
        # Texts take time; the first and the last method have stages of every kind.
        short = name in ("reasoning_gsm8k", "debate_sciq") and not ranks.LONG
        methods = toy.methods[:: len(toy.methods) - 1] if short else toy.methods
        few = FEWER if toy.task.name == "agreement" else ()
        few = [*few, "--workers=1", "--threads=1", f"--out={tmp_path / 'out'}"]
        assert main(["recipe", "run", name, "--toy", "--quiet", *few, "--methods", *methods]) == 0
        results = json.loads((tmp_path / "out/results.json").read_text())
        losses = [len(toy.losses) if "@" not in spec else 1 for spec in methods]
        assert len(results["runs"]) == sum(losses)


def test_list_has_a_line_for_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf"^{name} ", printed, re.MULTILINE) for name in NAMES)


def test_show_prints_downloads_numbers_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", "chat"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in (
        "hf download Qwen/Qwen3-4B-Base --local-dir models/Qwen3-4B-Base", "PGR 0.23 ± 0.12",
        "4,088.5 M parameters, 66.1 M trained", "w2s-fast recipe run chat --toy",
    ):  # fmt: skip
        assert text in printed


@pytest.mark.parametrize(("flags", "file"), [((), run_file), (("--toy",), toy_file)])
def test_show_prints_the_configuration_file(
    flags: tuple[str, ...], file: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", "show", "chat", "--yaml", *flags]) == 0
    assert capsys.readouterr().out == file("chat").read_text()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["lst"], "recipe 'lst'; expected one of list, show, run; did you mean 'list'?"),
        (["list", "chat"], "recipe list takes no arguments; found chat"),
        (["show"], "recipe show needs the name of a recipe first: one of burns_sciq, chat"),
        (["show", "chatt"], "no recipe 'chatt'; expected one of burns_sciq, chat"),
        (["show", "chat", "--loss"], "recipe show takes a name, --yaml and --toy; found --loss"),
        (["run", "--toy"], "recipe run needs the name of a recipe first"),
        (["run", "chat", "--seds", "1"], "unknown setting 'seds'"),
        (["run", "chat"], "hf download Qwen/Qwen1.5-0.5B-Chat --local-dir"),
        (["run", "../chat"], "no recipe '../chat'"),
    ],
)
def test_bad_arguments_are_named(
    args: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipe", *args]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_run_takes_other_models_for_the_missing_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    here = ["--weak.source=elsewhere", "--student.source=elsewhere"]
    assert main(["recipe", "run", "chat", *here]) == 2
    assert "hf download" not in capsys.readouterr().err


def test_run_prints_the_stages_without_computing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipe", "run", "burns_sciq", "--toy", "--dry-run"]) == 0
    assert "ceiling" in capsys.readouterr().out


def test_the_page_lists_every_recipe() -> None:
    page = (ROOT / "docs/recipes.md").read_text()
    assert [name for name in NAMES if f"| `{name}` |" not in page] == []
