"""Models: sources, pooling by mask, precision, random state, and what a bad directory says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.generation_cases import checkpoint
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.models import (
    ModelConfig,
    build_model,
    load_tokenizer,
    load_weights,
    save_weights,
)
from w2s_fast.models.backbone import architecture
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer

IDS = torch.tensor([[1, 5, 6, 7], [1, 9, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return agreement_tokenizer()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT checkpoint directory of the form sentence encoders are published in."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    path = tmp_path_factory.mktemp("bert")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "cat",
        "dogs",
        "see",
        "a",
        "b",
        "c",
    ]
    (path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(path / "vocab.txt"), model_max_length=16)
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0.1,
    )
    BertModel(config).save_pretrained(path)
    return path


def _filled(model: Any) -> Any:
    """A head that reads every hidden unit, so that logits show what was pooled."""
    with torch.no_grad():
        model.head.weight.copy_(torch.linspace(-1, 1, model.head.weight.numel()).view_as(
            model.head.weight))  # fmt: skip
    return model.eval()


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_padding_is_never_read(pooling: str, tokenizer: Any, bert: Path) -> None:
    """Logits of a short row equal those of the row alone, whatever stands in the padding."""
    for source in ("scratch", str(bert)):
        cfg = ModelConfig(source, pooling=pooling, hidden=16)
        tok = load_tokenizer(cfg, tokenizer)
        model = _filled(build_model(cfg, 2, tok, 0))
        alone = model(IDS[1:, :2], MASK[1:, :2])
        ids = IDS.clone()
        for filler in (0, 3):
            ids[1, 2:] = filler
            assert torch.allclose(model(ids, MASK)[1:], alone, atol=1e-6), (source, pooling)


def test_last_token_is_found_by_mask_not_by_id(tokenizer: Any) -> None:
    """A real token may have the padding's id; the mask alone says where the text ends."""
    model = _filled(build_model(ModelConfig("scratch"), 2, tokenizer, 0))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[1, 5, pad]])
    whole = model(ids, torch.ones(1, 3, dtype=torch.long))
    cut = model(ids, torch.tensor([[1, 1, 0]]))
    assert not torch.allclose(whole, cut)


def test_scratch_is_a_function_of_the_seed(tokenizer: Any) -> None:
    before = torch.get_rng_state()
    a, b, c = (build_model(ModelConfig("scratch"), 3, tokenizer, s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [next(m.base.parameters()) for m in (a, b, c)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert a(IDS, MASK).shape == (2, 3) and a.n_classes == 3


def test_head_init(tokenizer: Any) -> None:
    zero = build_model(ModelConfig("scratch"), 2, tokenizer, 0)
    assert torch.equal(zero(IDS, MASK), torch.zeros(2, 2))
    small = build_model(ModelConfig("scratch", head_init="small"), 2, tokenizer, 0)
    assert 0 < small(IDS, MASK).abs().max() < 0.1


def test_checkpoint_and_its_control(bert: Path) -> None:
    """The checkpoint's weights are loaded; the control has its shape and other weights."""
    from transformers import AutoModel

    cfg = ModelConfig(str(bert), pooling="mean")
    tok = load_tokenizer(cfg)
    model = build_model(cfg, 2, tok, 0).eval()
    reference = AutoModel.from_pretrained(bert).eval()
    inputs = tok(["the cat", "dogs see the cat"], padding=True, return_tensors="pt")
    hidden = reference(**inputs).last_hidden_state
    mine = model.base(**inputs).last_hidden_state
    assert torch.equal(hidden, mine)
    control = build_model(ModelConfig(str(bert), pretrained=False), 2, tok, 5)
    theirs = dict(control.named_parameters())
    for name, p in model.named_parameters():
        assert theirs[name].shape == p.shape
    name = "base.embeddings.word_embeddings.weight"
    assert not torch.equal(theirs[name], dict(model.named_parameters())[name])


def test_segments_reach_the_encoder(bert: Path) -> None:
    cfg = ModelConfig(str(bert), pooling="cls")
    model = _filled(build_model(cfg, 2, load_tokenizer(cfg), 0))
    types = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]])
    assert not torch.allclose(model(IDS, MASK), model(IDS, MASK, types))


def test_bf16_base_fp32_head(tokenizer: Any, bert: Path) -> None:
    for source in ("scratch", str(bert)):
        cfg = ModelConfig(source, dtype="bf16", head_init="small")
        model = build_model(cfg, 2, load_tokenizer(cfg, tokenizer), 0)
        assert next(model.base.parameters()).dtype == torch.bfloat16
        assert model.head.weight.dtype == torch.float32
        assert model(IDS, MASK).dtype == torch.float32


def test_bag_of_words_is_linear_in_counts(tokenizer: Any) -> None:
    model = build_model(ModelConfig("bow"), 2, tokenizer, 0)
    assert torch.equal(model(IDS, MASK), torch.zeros(2, 2))
    with torch.no_grad():
        model.weight[:, 1] = torch.arange(len(model.weight), dtype=torch.float32)
    out = model(IDS, MASK)[:, 1]
    assert torch.allclose(out, torch.tensor([19 / 4**0.5, 10 / 2**0.5]))
    swapped = model(IDS[:, [0, 2, 1, 3]], MASK[:, [0, 2, 1, 3]])[:, 1]
    assert torch.allclose(out, swapped)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_weights_round_trip(tokenizer: Any, tmp_path: Path, dtype: str) -> None:
    cfg = ModelConfig("scratch", dtype=dtype, head_init="small")
    a, b = (build_model(cfg, 2, tokenizer, s) for s in (0, 1))
    save_weights(a, tmp_path / "model.safetensors")
    load_weights(b, tmp_path / "model.safetensors")
    assert torch.equal(a(IDS, MASK), b(IDS, MASK))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    other = build_model(ModelConfig("scratch", hidden=16), 2, tokenizer, 0)
    with pytest.raises(W2SError, match="do not fit"):
        load_weights(other, tmp_path / "model.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0")
    with pytest.raises(W2SError, match="cannot be read"):
        load_weights(b, tmp_path / "cut.safetensors")


def test_bad_models(tokenizer: Any, bert: Path, tmp_path: Path) -> None:
    def says(match: str, source: str, tok: Any = tokenizer, **fields: Any) -> None:
        with pytest.raises(W2SError, match=match) as caught:
            build_model(ModelConfig(source, **fields), 2, tok, 0)
        assert "\n" not in str(caught.value)

    says("pretrained first", "agreement-lm")
    says("did you mean 'scratch'", "scrach")
    says("heads of even width", "scratch", hidden=30, heads=4)
    says("expected one of last, mean, cls; did you mean 'mean'", "scratch", pooling="meen")
    says("expected one of fp32, bf16", "scratch", dtype="fp8")
    says("use the tokenizer of that checkpoint", str(bert))
    with pytest.raises(W2SError, match="no tokenizer of its own"):
        load_tokenizer(ModelConfig("bow"), None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    says("no checkpoint that loads", str(tmp_path))
    with pytest.raises(W2SError, match="has no tokenizer: none of tokenizer.json"):
        load_tokenizer(ModelConfig(str(tmp_path)))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(W2SError, match="no tokenizer that loads"):
        load_tokenizer(ModelConfig(str(tmp_path)))


@pytest.mark.parametrize(
    "entry",
    [
        {"attn_implementation": "kernels-community/attention"},
        {"_attn_implementation_internal": "someone/attention@main"},
        {"text_config": {"_experts_implementation": "someone/experts"}},
        {"attn_implementation": {"text_config": "someone/attention"}},
    ],
)
def test_kernels_of_the_hub_are_code(entry: dict[str, Any], tokenizer: Any, tmp_path: Path) -> None:
    folder = checkpoint("llama", tmp_path / "lm", tokenizer)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entry}))
    for read in (architecture, lambda cfg: build_model(cfg, 2, tokenizer, 0)):
        with pytest.raises(W2SError, match=r"asks for \w+='\S+', which is code of the Hugging"):
            read(ModelConfig(str(folder)))


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_is_no_model(whole: bool, tokenizer: Any, tmp_path: Path) -> None:
    """Beside a model, transformers would add it and freeze the model."""
    folder = checkpoint("llama", tmp_path / "lm", tokenizer)
    (folder / "adapter_config.json").write_text("{}")
    if not whole:
        (folder / "config.json").unlink()
    with pytest.raises(
        W2SError, match="holds an adapter .*expected a whole model: save what merge"
    ):
        build_model(ModelConfig(str(folder)), 2, tokenizer, 0)


def test_a_checkpoint_with_weights_missing_is_refused(bert: Path, tmp_path: Path) -> None:
    """transformers would draw them at random and go on."""
    from safetensors.torch import load_file, save_file

    for part in bert.iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    tensors: dict[str, Tensor] = load_file(bert / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    cfg = ModelConfig(str(tmp_path))
    with pytest.raises(W2SError, match="lacks 1 weights of its own config"):
        build_model(cfg, 2, load_tokenizer(cfg), 0)


@pytest.mark.parametrize("kind", ["classification", "preference", "generation"])
@pytest.mark.parametrize("fields", [{}, {"pretrained": False}, {"lora_rank": 2}], ids=str)
def test_a_checkpoint_is_checked_without_its_weights(
    kind: str, fields: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("peft")
    cfg = ModelConfig(str(checkpoint("llama", tmp_path / "lm", tokenizer)), **fields)
    model = build_model(cfg, 2, tokenizer, 0, kind, empty=True)
    assert all(p.is_meta for name, p in model.named_parameters() if not name.startswith("head."))
    (weights,) = tmp_path.glob("lm/*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-9])
    if not fields.get("pretrained", True):
        return
    with pytest.raises(W2SError, match="no checkpoint that loads"):
        build_model(cfg, 2, tokenizer, 0, kind, empty=True)


def test_too_long_a_sequence_names_the_setting(bert: Path) -> None:
    cfg = ModelConfig(str(bert))
    model = build_model(cfg, 2, load_tokenizer(cfg), 0)
    ids = torch.ones(1, 17, dtype=torch.long)
    with pytest.raises(W2SError, match="max_length=16"):
        model(ids, ids)


@pytest.mark.parametrize(
    "weights",
    [{"x": "../other/model.safetensors"}, {"x": "/etc/passwd"}, {"x": ".."}, {"x": 3}, ["x"], None],
)
def test_an_index_leads_to_no_other_folder(weights: Any, bert: Path, tmp_path: Path) -> None:
    """A checkpoint names the files that are read, and only its own."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((bert / name).read_bytes())
    path = tmp_path / "model.safetensors"
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"weight_map": weights}))
    cfg = ModelConfig(str(tmp_path))
    for load in (
        lambda: build_model(cfg, 2, load_tokenizer(cfg, None), 0),
        lambda: load_weights(torch.nn.Linear(1, 1), path),
    ):
        with pytest.raises(W2SError, match=r"index.json (names|cannot be read)"):
            load()
