"""Malformed checkpoints of a student: configuration, weights, tokenizer, and what stands beside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from campaigns.malformed.attempt import Attempt
from campaigns.malformed.files import FILE_FAULTS, FileFault, cut_short, wrong_encoding
from campaigns.malformed.inputs import (
    checkpoint,
    csv_text,
    edit_json,
    local_settings,
    run,
    write_settings,
)
from campaigns.malformed.settings import Make

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
Change = Callable[[Path, Random], Any]


def _of(
    change: Change, *, may_pass: bool = False, computes: tuple[str, ...] = (), **student: Any
) -> Make:
    """A run whose student's folder was changed."""

    def make(folder: Path, rng: Random) -> Attempt:
        (folder / "data.csv").write_text(csv_text())
        change(checkpoint(folder / "student"), rng)
        settings = local_settings("data.csv")
        settings["student"] |= student
        path = write_settings(folder / "run.yaml", settings)
        return Attempt(run(path), ("student", "the loss is nan"), may_pass, computes=computes)

    return make


def _file(name: str, fault: FileFault, *, may_pass: bool = False) -> Make:
    return _of(lambda folder, rng: fault(folder / name, rng), may_pass=may_pass)


def _json(name: str, *texts: str, may_pass: bool = False) -> Make:
    """Other JSON than an object of the right kind."""
    return _of(lambda folder, rng: (folder / name).write_text(rng.choice(texts)), may_pass=may_pass)


_OTHER_JSON = (
    "[]", "3", "null", '"a"', "{}", "{", "[" * 100_000, "{'a': 1}", '{"a": NaN', "\ufeff{}", "{}{}",
    '{"a": 1e999999}', f"[{'9' * 6000}]",
)  # fmt: skip


def _fields(name: str, *changes: dict[str, Any], may_pass: bool = False) -> Make:
    return _of(
        lambda folder, rng: edit_json(folder / name, **rng.choice(changes)), may_pass=may_pass
    )


def _weights(
    change: Callable[[dict[str, Any], Random], Any],
    *,
    may_pass: bool = False,
    computes: tuple[str, ...] = (),
) -> Make:
    """Other tensors than those of the model."""

    def write(folder: Path, rng: Random) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / WEIGHTS)
        change(tensors, rng)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return _of(write, may_pass=may_pass, computes=computes)


def _name(tensors: dict[str, Any], rng: Random) -> str:
    return rng.choice(sorted(n for n in tensors if "lm_head" not in n))  # not the classifier's


def _other_shape(tensors: dict[str, Any], rng: Random) -> None:
    name = _name(tensors, rng)
    t = tensors[name]
    tensors[name] = rng.choice((t[:-1], t[None], t.flatten()[:1], t.new_empty(0))).clone()


def _other_dtype(tensors: dict[str, Any], rng: Random) -> None:
    import torch

    name = _name(tensors, rng)
    tensors[name] = tensors[name].to(rng.choice((torch.int64, torch.bool, torch.uint8)))


def _renamed(tensors: dict[str, Any], rng: Random) -> None:
    name = _name(tensors, rng)
    tensors[f"{name}.old"] = tensors.pop(name)


def _without(tensors: dict[str, Any], rng: Random) -> None:
    del tensors[_name(tensors, rng)]


def _no_numbers(tensors: dict[str, Any], rng: Random) -> None:
    tensors[_name(tensors, rng)].view(-1)[0] = rng.choice((float("nan"), float("inf")))


def _header(folder: Path, rng: Random) -> None:
    """A header of safetensors that its length, JSON or offsets contradict."""
    path = folder / WEIGHTS
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    kind = rng.randrange(4)
    if kind == 0:
        content[:8] = rng.choice((0, 2**63, length + 7, 2**32)).to_bytes(8, "little")
    elif kind == 1:
        content[8 + rng.randrange(length // 2)] = 0
    elif kind == 2:
        header = json.loads(content[8 : 8 + length])
        header[_name({n: 0 for n in header if n != "__metadata__"}, rng)]["data_offsets"] = [
            0,
            10**12,
        ]
        content[8 : 8 + length] = json.dumps(header).encode().ljust(length)[:length]
    else:
        content += b"more"
    path.write_bytes(content)


def _index(folder: Path, rng: Random) -> None:
    """Weights in several files by an index that does not hold."""
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    names = {"model.norm.weight": "model-00001-of-00001.safetensors"}
    index: Any = rng.choice(
        (
            {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}},
            {"weight_map": {"model.norm.weight": "../secret.safetensors"}},
            {"weight_map": {"model.norm.weight": "/dev/zero"}}, {"weight_map": []}, {},
            {"weight_map": {"model.norm.weight": 3}}, {"weight_map": names | {"other": "none"}},
            [], None,
            {"weight_map": names, "metadata": 3},
        )
    )  # fmt: skip
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def _pickle_alone(folder: Path, rng: Random) -> None:
    import torch

    (folder / WEIGHTS).unlink()
    torch.save({"model.norm.weight": torch.ones(16)}, folder / "pytorch_model.bin")


def _no_tokenizer(folder: Path, rng: Random) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def _larger_vocabulary(folder: Path, rng: Random) -> None:
    path = folder / TOKENIZER
    core = json.loads(path.read_text())
    core["model"]["vocab"] |= {f"word{i}": 12 + i for i in range(rng.choice((1, 500)))}
    path.write_text(json.dumps(core))


FAULTS: dict[str, Make] = {
    **{f"{CONFIG}: {n}": _file(CONFIG, f) for n, f in FILE_FAULTS.items()},
    **{f"{WEIGHTS}: {n}": _file(WEIGHTS, f) for n, f in FILE_FAULTS.items()},
    **{f"{TOKENIZER}: {n}": _file(TOKENIZER, f) for n, f in FILE_FAULTS.items()},
    "weights cut short": _file(WEIGHTS, cut_short),
    "weights' header": _of(_header),
    "weights of another shape": _weights(_other_shape),
    "weights of whole numbers": _weights(_other_dtype, may_pass=True),  # they are converted
    "weights renamed": _weights(_renamed),
    "weights missing": _weights(_without),
    # Only the loss shows them: a search through all weights would read them from disk twice.
    "weights not finite": _weights(
        _no_numbers, computes=("weak", "labels", "ceiling", "student")
    ),
    "pickle alone": _of(_pickle_alone),
    "index": _of(_index),
    "configuration cut short": _file(CONFIG, cut_short),
    "configuration in another encoding": _file(CONFIG, wrong_encoding),
    "configuration is other JSON": _json(CONFIG, *_OTHER_JSON),
    "sizes of the wrong type": _fields(
        CONFIG, *({name: value} for name in ("hidden_size", "num_hidden_layers", "vocab_size",
                                            "num_attention_heads", "intermediate_size")
                  for value in ("16", -1, 0, 1.5, [], {}, True, float("nan"))),
    ),
    "sizes that do not fit": _fields(
        CONFIG, {"hidden_size": 15}, {"hidden_size": 32}, {"num_hidden_layers": 2},
        {"vocab_size": 5}, {"num_attention_heads": 3}, {"num_key_value_heads": 7},
        {"intermediate_size": 25}, {"head_dim": 3},
    ),
    "kind of model": _fields(
        CONFIG, {"model_type": "unknown"}, {"model_type": 3}, {"model_type": ""},
        {"model_type": None}, {"model_type": "t5"}, {"model_type": "vit"},
        {"model_type": "whisper"},
        {"model_type": ["llama"]}, {"model_type": "../llama"},
    ),
    "code of its own": _fields(
        CONFIG, {"auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"},
                 "model_type": "mine"},
    ),
    "quantized": _fields(
        CONFIG, {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {}}, {"quantization_config": 3},
        {"quantization_config": {"quant_method": "none such"}},
    ),
    "other fields": _fields(
        CONFIG, {"hidden_act": "none such"}, {"rope_theta": "x"}, {"rope_scaling": {"type": "x"}},
        {"rms_norm_eps": "x"}, {"pad_token_id": 99999}, {"torch_dtype": "float3"},
        {"dtype": "int8"},
        {"attn_implementation": "none such"}, {"tie_word_embeddings": "x"},
        {"max_position_embeddings": "x"},
        {"initializer_range": None}, {"architectures": 3}, {"rope_parameters": 3}, may_pass=True,
    ),
    "tokenizer cut short": _file(TOKENIZER, cut_short),
    "tokenizer is other JSON": _json(TOKENIZER, *_OTHER_JSON),
    "tokenizer without vocabulary": _fields(
        TOKENIZER, {"model": None}, {"model": {}}, {"model": {"type": "WordLevel", "vocab": []}},
        {"model": {"type": "none such"}}, {"pre_tokenizer": {"type": "none such"}},
        {"added_tokens": 3},
    ),
    "tokenizer larger than the model": _of(_larger_vocabulary),
    "no tokenizer": _of(_no_tokenizer),
    "tokenizer's settings": _json("tokenizer_config.json", *_OTHER_JSON, may_pass=True),
    "tokenizer's class": _fields(
        "tokenizer_config.json", {"tokenizer_class": "none such"}, {"tokenizer_class": 3},
        {"pad_token": None}, {"model_max_length": "x"}, {"pad_token": {"a": 1}},
        {"added_tokens_decoder": 3}, {"auto_map": {"AutoTokenizer": ["a.B", None]}}, may_pass=True,
    ),
    "special tokens": _json("special_tokens_map.json", *_OTHER_JSON, may_pass=True),
    "generation settings": _json("generation_config.json", *_OTHER_JSON, may_pass=True),
    "an adapter": _json("adapter_config.json", '{"peft_type": "LORA"}', "[]", "{", may_pass=True),
    "folder is a file": _of(lambda folder, rng: _replace_folder(folder)),
    "folder links to itself": _of(lambda folder, rng: _link_folder(folder)),
}  # fmt: skip


def _replace_folder(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)
    folder.write_text("a file")


def _link_folder(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)
    folder.symlink_to(folder.name)
