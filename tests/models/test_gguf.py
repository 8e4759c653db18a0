"""GGUF files as a model source: de-quantised weights, tokenizer, export, and bad files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.gguf_files import TEXTS, dequantised, tiny_llama, write_gguf

import w2s_fast
from w2s_fast import RunConfig, TaskConfig, TrainConfig
from w2s_fast.errors import W2SError
from w2s_fast.files import tree_hash, tree_stamp
from w2s_fast.models import ModelConfig, build_model, export_gguf, load_tokenizer
from w2s_fast.models.backbone import architecture
from w2s_fast.models.text_tokenizer import train_tokenizer

pytest.importorskip("gguf")
pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS)


@pytest.fixture(scope="module")
def lm(tokenizer: Any) -> Any:
    return tiny_llama(len(tokenizer)).eval()


@pytest.fixture(scope="module")
def file(tokenizer: Any, lm: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", lm, tokenizer)


def test_weights_and_tokenizer_are_those_of_the_file(file: Path, lm: Any, tokenizer: Any) -> None:
    cfg = ModelConfig(str(file))
    read = load_tokenizer(cfg)
    ids = [read(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert ids == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert read.padding_side == "right" and read.pad_token_id == 0
    inputs = torch.tensor(ids[:1])
    generative: Any = build_model(cfg, 2, read, 0, "generation").eval()
    assert torch.equal(generative.lm(inputs).logits, lm(inputs).logits)
    assert torch.equal(generative.lm.lm_head.weight, lm.lm_head.weight)
    classifier: Any = build_model(cfg, 2, read, 0).eval()
    hidden = lm.model(inputs).last_hidden_state
    assert torch.equal(classifier.base(inputs).last_hidden_state, hidden)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_quantised_weights_become_floats(
    kind: str, lm: Any, tokenizer: Any, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "small.GGUF", lm, tokenizer, kind)
    for dtype, torch_dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        cfg = ModelConfig(str(path), dtype=dtype)
        model: Any = build_model(cfg, 2, load_tokenizer(cfg), 0)
        weight = model.base.layers[1].mlp.down_proj.weight
        truth = lm.model.layers[1].mlp.down_proj.weight
        assert weight.dtype == torch_dtype and weight.requires_grad
        assert torch.equal(weight, dequantised(truth, kind).to(torch_dtype))
        assert not torch.equal(weight.float(), truth)


def test_a_file_is_checked_without_its_weights(lm: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Its weights are not de-quantised, so one that is missing is not noticed."""
    path = write_gguf(tmp_path / "less.gguf", lm, tokenizer, leave_out="blk.1.ffn_up.weight")
    cfg = ModelConfig(str(path))
    model = build_model(cfg, 2, load_tokenizer(cfg), 0, empty=True)
    assert all(p.is_meta for name, p in model.named_parameters() if not name.startswith("head."))
    assert architecture(cfg).num_hidden_layers == 2


def test_export_is_a_folder_with_the_same_model(file: Path, lm: Any, tmp_path: Path) -> None:
    folder = export_gguf(file, tmp_path / "folder", dtype="bf16")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        p.name for p in folder.iterdir()
    }
    cfg = ModelConfig(str(folder))
    model: Any = build_model(cfg, 2, load_tokenizer(cfg), 0, "generation")
    assert torch.equal(model.lm.lm_head.weight, lm.lm_head.weight.bfloat16().float())
    with pytest.raises(W2SError, match="not empty; name a new folder"):
        export_gguf(file, folder)
    with pytest.raises(W2SError, match="expected a file whose name ends in .gguf"):
        export_gguf(folder, tmp_path / "other")


def test_bad_files(file: Path, lm: Any, tokenizer: Any, tmp_path: Path) -> None:
    def says(match: str, path: Path) -> None:
        cfg = ModelConfig(str(path))
        with pytest.raises(W2SError, match=match) as caught:
            build_model(cfg, 2, load_tokenizer(cfg), 0)
        assert "\n" not in str(caught.value)

    says("cannot be read: No such file", tmp_path / "none.gguf")
    (tmp_path / "other.gguf").write_bytes(b"PK\x03\x04")
    says("expected a GGUF file", tmp_path / "other.gguf")
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:400])
    says("no tokenizer that loads", tmp_path / "cut.gguf")
    cut = tmp_path / "cut_weights.gguf"
    cut.write_bytes(file.read_bytes()[:-5000])
    says("no tokenizer that loads: cannot reshape", cut)  # its tensors are read first
    less = write_gguf(tmp_path / "less.gguf", lm, tokenizer, leave_out="blk.1.ffn_up.weight")
    says("lacks 1 weights of its own config, first 'layers.1.mlp.up_proj.weight'", less)


def test_a_missing_package_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "gguf" else real(name, *a)
    )
    with pytest.raises(W2SError, match=r'needs gguf: pip install "w2s-fast\[gguf\]"'):
        load_tokenizer(ModelConfig(str(file)))


def test_the_digest_of_a_file_is_that_of_its_content(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(file.read_bytes())
    assert tree_hash(copy) == tree_hash(file) and tree_stamp(copy) != tree_stamp(file)
    copy.write_bytes(file.read_bytes()[:-1] + b"x")
    assert tree_hash(copy) != tree_hash(file)


@pytest.fixture(scope="module")
def trained(file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run whose student is the file, after its student was trained."""
    folder = tmp_path_factory.mktemp("run")
    rows = [f"{text} {i}\t{i % 2}" for i, text in enumerate(TEXTS * 6)]
    (folder / "rows.tsv").write_text("\n".join(rows) + "\n")
    cfg = RunConfig(
        task=TaskConfig("local", str(folder / "rows.tsv"), text="0", label="1",
                        n_weak=8, n_transfer=12, n_test=8),
        weak=ModelConfig("bow"), student=ModelConfig(str(file)),
        weak_train=TrainConfig(epochs=1, lr=0.1), student_train=TrainConfig(epochs=1, lr=1e-3),
        losses=("xent",), methods=("naive", "elicit@xent"), seeds=(0,),
        output_dir=str(folder / "out"),
    )  # fmt: skip
    w2s_fast.run(cfg)
    return cfg


@pytest.mark.slow
def test_a_run_reads_the_file(trained: RunConfig) -> None:
    results = w2s_fast.run(trained)
    assert [run["name"] for run in results["runs"]] == ["xent", "elicit+xent"]
    stages = results["provenance"]["stages"]
    assert all(stage["reused"] for stage in stages.values()), "the second run computes nothing"
    assert not any(name.startswith("tokenizer") for name in stages), "bow uses that of the file"


@pytest.mark.slow
def test_a_trained_student_is_exported(trained: RunConfig, tmp_path: Path) -> None:
    from transformers import AutoModel

    from w2s_fast.pipeline.export import export

    export(trained, "student/0/xent", tmp_path / "student")
    model = AutoModel.from_pretrained(tmp_path / "student")
    assert model.config.num_hidden_layers == 2 and model.dtype == torch.float32


@pytest.mark.slow
def test_a_configuration_with_a_missing_file_says_so(trained: RunConfig) -> None:
    from dataclasses import replace

    with pytest.raises(W2SError, match="student.source='no.gguf' is not a file; expected"):
        w2s_fast.run(replace(trained, student=ModelConfig("no.gguf")))
