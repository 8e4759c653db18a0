"""Malformed hostfiles, sweeps, DeepSpeed settings and environment variables."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from campaigns.malformed.attempt import Attempt
from campaigns.malformed.files import FILE_FAULTS, cut_short, wrong_encoding
from campaigns.malformed.inputs import run, toy_settings, write_settings
from campaigns.malformed.settings import Make

# Hostfiles --------------------------------------------------------------------------------------


def _hosts(change: Callable[[Path, Random], Any]) -> Make:
    def make(folder: Path, rng: Random) -> Attempt:
        write_settings(folder / "run.yaml", toy_settings())
        path = folder / "hosts"
        path.write_text("node-a slots=1\nnode-b slots=1\n")
        change(path, rng)
        return Attempt(["launch", "--hostfile", "hosts", "--dry-run", "run.yaml"], ("hosts",))

    return make


def _lines(*lines: str) -> Make:
    return _hosts(lambda path, rng: path.write_text(f"node-a slots=1\n{rng.choice(lines)}\n"))


def _launch(*calls: tuple[list[str], str]) -> Make:
    def make(folder: Path, rng: Random) -> Attempt:
        write_settings(folder / "run.yaml", toy_settings())
        (folder / "hosts").write_text("node-a slots=1\nnode-b slots=1\n")
        args, named = rng.choice(calls)
        return Attempt(["launch", *args], (named,))

    return make


HOSTFILES: dict[str, Make] = {
    **{f"file: {n}": _hosts(f) for n, f in FILE_FAULTS.items()},
    "encoding": _hosts(wrong_encoding),
    "no slots": _lines("node-b", "node-b slots", "node-b slots=", "node-b 4", "node-b:4"),
    "slots": _lines(*(f"node-b slots={n}" for n in ("0", "-1", "x", "1.5", "1e3", "9" * 30, "٣"))),
    "more words": _lines("node-b slots=1 slots=2", "node-b slots=1 max_slots=4",
        "node-b slots=1,2"),
    "an option": _lines("-oProxyCommand=x slots=1", "--help slots=1", "- slots=1"),
    "shell": _lines("$(id) slots=1", "`id` slots=1", "a;id slots=1", "a|b slots=1", "a&b slots=1"),
    "lists of pdsh": _lines("node[1-9] slots=1", "a,b slots=1", "^file slots=1", "a@b@c slots=1"),
    "unicode": _lines("nöde slots=1", "node\u200bb slots=1", "节点 slots=1",
        "node-b\u00a0slots=1\u2028x"),
    "host twice": _lines("node-a slots=1", "node-a slots=2"),
    "long": _lines("x" * 100_000, f"{'x' * 100_000} slots=1 y"),
    "comments alone": _hosts(lambda path, rng: path.write_text("# node-a slots=1\n\n")),
    "options": _launch(
        (["--hostfile"], "hostfile"), (["--processes", "x", "run.yaml"], "processes"),
        (["--processes", "-1", "run.yaml"], "processes"), (["--master-port", "99999", "run.yaml"],
        "port"),
        (["--node-rank", "7", "--no-ssh", "--hostfile", "hosts", "run.yaml"], "node-rank"),
        (["--no-ssh", "run.yaml"], "--no-ssh"), (["--hostfile", "hosts"], "configuration"),
        (["--hostfile", "hosts", "nowhere.yaml"], "nowhere.yaml"), (["--slots", "1", "run.yaml"],
        "--slots"),
        (["--dry-run", "run.yaml", "--sedes", "1"], "seeds"), (["--master-port", "x", "run.yaml"],
        "port"),
        (["--ssh-port", "0", "--dry-run", "--hostfile", "hosts", "run.yaml"], "ssh-port"),
        (["--processes", "0", "--dry-run", "run.yaml"], "processes"),
        (["--hostfile", "hosts", "--dry-run", "--processes", "7", "run.yaml"], "batch_size"),
    ),
}  # fmt: skip

# Sweeps -----------------------------------------------------------------------------------------


def _sweep_settings(**changes: Any) -> dict[str, Any]:
    shared = toy_settings()
    for name in ("output_dir", "workers", "weak", "student"):
        del shared[name]
    values = {"run": shared, "weak_models": ["bow"], "student_models": ["bow:pretrained=false"],
              "devices": ["cpu"], "output_dir": "out"}  # fmt: skip
    return {**values, **changes}


def _sweep(change: Callable[[Path, Random], Any], *names: str) -> Make:
    def make(folder: Path, rng: Random) -> Attempt:
        path = write_settings(folder / "sweep.yaml", _sweep_settings())
        change(path, rng)
        args = ["sweep", "--config", "sweep.yaml", "--quiet"]
        dry = rng.random() < 0.5  # writes nothing, so that no folder is too bad for it
        args += ["--dry-run"] if dry else []
        return Attempt(args, names or ("sweep.yaml",), may_pass=dry and "output_dir" in names)

    return make


def _entries(name: str, *values: Any, names: tuple[str, ...] = ()) -> Make:
    return _sweep(
        lambda path, rng: write_settings(path, _sweep_settings(**{name: rng.choice(values)})),
        *(names or (name,)),
    )


SWEEPS: dict[str, Make] = {
    **{f"file: {n}": _sweep(f) for n, f in FILE_FAULTS.items()},
    "encoding": _sweep(wrong_encoding),
    "empty lists": _sweep(
        lambda path, rng: write_settings(
            path, _sweep_settings(**{rng.choice(("tasks", "weak_models", "student_models")): []})
        ),
        "is empty",
    ),
    "tasks": _entries(
        "tasks", ["agrement"], [""], [":"], ["local"], ["local:path=nowhere.csv"],
        ["agreement:n_weak=x"],
        ["agreement:n_weak=1"], ["agreement:pretrain=1"], ["agreement:=1"], [None], [3.5], {"a": 1},
        ["agreement:n_weak=nan"], ["os:path"], ["agreement", "agreement"], ["agreement",
        "agreement:n_weak=20"],
        names=("task", "agreement", "nowhere.csv", "n_weak", "os:path"),
    ),
    "models": _entries(
        "weak_models", ["none such"], [""], ["bow:lr=x"], ["bow:lr=nan"], ["bow:heads=0"],
        ["bow:x=1"],
        ["scratch:hidden=7"], ["bow:dtype=fp64"], ["bow:epochs=0"], [[]], [{"source": "bow"}],
        "nowhere/x",
        ["bow", "bow"], ["bow:lr=-1"], ["bow:lr"], ["bow:lora_rank=2"], ["\ud800"],
        names=("bow", "none such", "weak", "source", "hidden", "lr", "heads", "dtype", "epochs",
        "nowhere"),
    ),
    "pairs": _entries("pairs", "none", "", 3, None, ["all"], "smaller"),
    "devices": _entries("devices", ["gpu"], ["cuda"], ["cuda:x"], ["cpu", "cuda:0"], [""],
        ["cuda:99"], [3]),
    "output": _entries("output_dir", "", None, [], "/dev/null", "/proc/none", "a\0b", "x" * 5000,
                       names=("output_dir", "/dev/null", "/proc/none", "a", "xxx")),
    "run": _sweep(
        lambda path, rng: write_settings(
            path, _sweep_settings(run=toy_settings(**rng.choice(
                ({"output_dir": "x"}, {"workers": 2}, {"device": "gpu"}, {"losses": ["xnet"]},
                 {"seeds": [-1]}, {"sedes": [1]}, {"weak_train": {"lr": "x"}},
                 {"methods": ["none"]})
            )))
        ),
        "run.", "seeds", "device", "xent", "lr", "none",
    ),
    "block": _entries("run", 3, None, [], "x"),
    "unknown key": _sweep(
        lambda path, rng: write_settings(
            path, _sweep_settings(**{rng.choice(("weak", "models", "task", "seeds", "runs",
            "")): 1})
        ),
        "unknown setting",
    ),
    "key twice": _sweep(lambda path,
        rng: path.write_text(path.read_text() + "pairs: all\npairs: all\n")),
}  # fmt: skip

# DeepSpeed settings -----------------------------------------------------------------------------


def _deepspeed(change: Callable[[Path, Random], Any], *names: str) -> Make:
    def make(folder: Path, rng: Random) -> Attempt:
        path = folder / "ds.json"
        path.write_text(json.dumps({"zero_optimization": {"overlap_comm": False}}))
        change(path, rng)
        student = {
            **toy_settings()["student_train"],
            "zero_stage": 2,
            "deepspeed_config": "ds.json",
        }
        settings = toy_settings(student_train=student)
        return Attempt(run(write_settings(folder / "run.yaml", settings)), ("ds.json", *names))

    return make


def _json(*values: Any) -> Make:
    return _deepspeed(
        lambda path, rng: path.write_text(
            v if isinstance(v := rng.choice(values), str) else json.dumps(v)
        )
    )


DEEPSPEED: dict[str, Make] = {
    **{f"file: {n}": _deepspeed(f) for n, f in FILE_FAULTS.items()},
    "encoding": _deepspeed(wrong_encoding),
    "cut short": _deepspeed(cut_short),
    "other JSON": _json("[]", "3", "null", '"a"', "{", "[" * 100_000, "{'a': 1}",
        f"[{'9' * 6000}]", "{}{}"),
    "unknown setting": _json({"zero": 2}, {"zero_optimisation": {}}, {"": 1}, {"train_batch": 8}),
    "refused setting": _json({"scheduler": {"type": "WarmupLR"}}, {"amp": {"enabled": True}},
        {"elasticity": {}}),
    "other value": _json(
        {"train_batch_size": 3}, {"gradient_clipping": 9}, {"optimizer": {"type": "SGD"}},
        {"optimizer": {"params": {"lr": 1}}}, {"zero_optimization": {"stage": 3}},
        {"bf16": {"enabled": True}},
        {"fp16": {"enabled": True}},
    ),
    "type of a block": _json(
        {"zero_optimization": 3}, {"zero_optimization": []}, {"zero_optimization": None},
        {"optimizer": 3},
        {"optimizer": []}, {"bf16": 1}, {"fp16": "on"}, {"optimizer": {"params": 3}}, {"aio": 3},
        {"activation_checkpointing": "x"}, {"flops_profiler": 3}, {"comms_logger": []},
        {"data_types": 3},
        {"tensorboard": 3}, {"checkpoint": []},
    ),
    "type of a value": _json(
        {"zero_optimization": {"reduce_bucket_size": "x"}},
        {"zero_optimization": {"overlap_comm": "x"}},
        {"zero_optimization": {"reduce_bucket_size": -1}}, {"steps_per_print": "x"},
        {"dump_state": "x"},
        {"zero_optimization": {"allgather_bucket_size": []}}, {"wall_clock_breakdown": "x"},
        {"zero_optimization": {"offload_optimizer": {"device": "disk"}}},
        {"communication_data_type": 3},
        {"zero_optimization": {"sub_group_size": None}}, {"train_micro_batch_size_per_gpu": "x"},
    ),
    "auto": _json({"zero_optimization": {"sub_group_size": "auto"}}, {"steps": "auto"},
        {"aio": "auto"}),
    "not a number": _json('{"gradient_clipping": NaN}', '{"train_batch_size": Infinity}'),
    "unknown names below": _json({"zero_optimization": {"stages": 2}},
        {"zero_optimization": {"": 1}}),
}  # fmt: skip

# Environment variables --------------------------------------------------------------------------


def _env(
    *cases: tuple[Mapping[str, str], str], fresh: bool = False, may_pass: bool = False
) -> Make:
    def make(folder: Path, rng: Random) -> Attempt:
        settings = toy_settings()
        for name in ("weak_train", "student_train"):
            settings[name]["timeout_s"] = 5
        env, named = rng.choice(cases)
        args = run(write_settings(folder / "run.yaml", settings))
        return Attempt(args, (named, "did not connect"), may_pass, env, fresh=fresh)

    return make


_TWO = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
ENVIRONMENT: dict[str, Make] = {
    "rank": _env(*(({**_TWO, "RANK": r}, "RANK") for r in ("x", "-1", "2", "1.5", "nan",
        "9" * 5000))),
    "size": _env(*(({**_TWO, "WORLD_SIZE": s}, "WORLD_SIZE") for s in ("x", "0", "-2", "two",
        "1e1"))),
    "local rank": _env(*(({**_TWO, "LOCAL_RANK": s}, "LOCAL_RANK") for s in ("x", "-1", "1.0"))),
    "address missing": _env(({k: v for k, v in _TWO.items() if k != "MASTER_ADDR"}, "MASTER_ADDR")),
    "port": _env(*(({**_TWO, "MASTER_PORT": p}, "MASTER_PORT") for p in ("x", "-1", "", "99999",
        "1.5", "٣"))),
    "address": _env(
        *(({**_TWO, "RANK": "1", "MASTER_ADDR": a}, "MASTER_ADDR")
          for a in ("", " ", "no such host", "256.1.1.1", "none.invalid", "[::")),
        fresh=True,
    ),
    "nobody joins": _env((_TWO | {"MASTER_PORT": "29877"}, "did not connect"), fresh=True),
    "Slurm": _env(
        *(({"SLURM_PROCID": p, "SLURM_NTASKS": n, "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"},
        "SLURM")
          for p, n in (("x", "2"), ("3", "2"), ("0", "two")))
    ),
    "backend": _env(
        *(({"W2S_BACKEND": b}, "W2S_BACKEND") for b in ("x", "CPP ", "cpp,ref", "\u00e9"))
    ),
    "instruction set": _env(
        *(({"W2S_CPU_CAPABILITY": c}, "W2S_CPU_CAPABILITY") for c in ("x", "AVX2 ", "avx1024"))
    ),
    "plots": _env(*(({"MPLBACKEND": b}, "MPLBACKEND") for b in ("x", "module://none")),
        fresh=True, may_pass=True),
    "terminal": _env(
        *((e, "") for e in ({"TERM": "x"}, {"COLUMNS": "x"}, {"COLUMNS": "0"}, {"COLUMNS": "-5"},
        {"LINES": "x"})),
        may_pass=True,
    ),
    "folders": _env(
        *((e, "") for e in ({"TMPDIR": "/none"}, {"HOME": "/none"}, {"HF_HOME": "/dev/null"},
        {"XDG_CACHE_HOME": "/none"})),
        fresh=True, may_pass=True,
    ),
}  # fmt: skip


def _key(value: str | None) -> Make:
    def make(folder: Path, rng: Random) -> Attempt:
        writer = {"kind": "endpoint", "url": "http://127.0.0.1:9/v1/chat/completions", "model": "m",
                  "key_variable": "CAMPAIGN_KEY"}  # fmt: skip
        settings = toy_settings(methods=["debate"], transcript_writer=writer)
        args = run(write_settings(folder / "run.yaml", settings))
        return Attempt(
            args, ("CAMPAIGN_KEY",), env={} if value is None else {"CAMPAIGN_KEY": value}
        )

    return make


ENVIRONMENT |= {
    "key missing": _key(None), "key empty": _key(""), "key of blanks": _key(" \n"),
    "key of two lines": _key("sk-a\nX-Header: b"), "key in unicode": _key("sk-é"),
    "key with a blank": _key("a b"),
}  # fmt: skip
