"""The whole pipeline by several processes: the files of one process, and it survives kills."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import ranks
from helpers.generation_cases import checkpoint

from w2s_fast import store
from w2s_fast.cli import main as cli
from w2s_fast.config import RunConfig, to_yaml
from w2s_fast.errors import W2SError
from w2s_fast.files import file_lock, read_sealed, write_sealed
from w2s_fast.models import ModelConfig
from w2s_fast.pipeline import artifacts
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.export import ABOUT, HEAD, export
from w2s_fast.pipeline.stages import predict
from w2s_fast.supervisors import SupervisorsConfig
from w2s_fast.tasks import OodConfig, ShortcutConfig, TaskConfig
from w2s_fast.tasks.datasets.agreement import tokenizer

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.dist]
SHARD = 64  # items of a shard of weak labels


def config(folder: Path, **train: Any) -> RunConfig:
    base = RunConfig()
    return dataclasses.replace(
        base,
        task=TaskConfig(
            name="agreement",
            n_weak=60,
            n_transfer=200,
            n_test=60,
            shortcut=ShortcutConfig(availability=1),
            ood=OodConfig(n=20),
        ),  # fmt: skip
        student=ModelConfig("scratch", hidden=16, layers=1, heads=2),
        weak=ModelConfig("scratch", hidden=16, layers=1, heads=2),
        weak_train=dataclasses.replace(base.weak_train, epochs=1, timeout_s=30),
        student_train=dataclasses.replace(
            base.student_train, **{"epochs": 1, "timeout_s": 30, **train}
        ),
        losses=("logconf",),
        seeds=(0,),
        output_dir=str(folder / "out"),
        workers=1,
        threads=1,
    )


def impatient(folder: Path) -> RunConfig:
    """Return a configuration whose collective calls may take four seconds."""
    cfg = config(folder, timeout_s=4)
    return dataclasses.replace(cfg, weak_train=dataclasses.replace(cfg.weak_train, timeout_s=4))


def write(cfg: RunConfig, folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(to_yaml(cfg))
    return path


def tables(out: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for file in sorted(out.glob("cache/*/**/*.parquet")):
        name = file.relative_to(out / "cache")
        table = pq.read_table(file)
        if "probs" not in table.column_names:  # outcomes
            continue
        arrays[f"{name.parts[0].partition('-')[0]}/{file.name}"] = np.array(
            table["probs"].to_pylist(), np.float32
        )
    return arrays


def test_as_by_one_process(tmp_path: Path) -> None:
    """Data-parallel and ZeRO-3 on two; ZeRO-3 on three, where only the recipe's batches differ."""
    arrays = {}
    for name, size, zero in (("one", 1, 0), ("two", 2, 0), ("sharded", 2, 3), ("three", 3, 3)):
        folder = tmp_path / name
        folder.mkdir()
        train = {"zero_stage": zero, "batch_size": 12 if size == 3 else 32}
        cfg = config(folder, **train)
        if size == 3:
            cfg = dataclasses.replace(
                cfg, weak_train=dataclasses.replace(cfg.weak_train, batch_size=33)
            )
        ranks.run(__file__, size, ["run", "--config", str(write(cfg, folder)), "--quiet"])
        arrays[name] = tables(folder / "out")
        results = json.loads((folder / "out" / "results.json").read_text())
        assert len(results["runs"]) == 1 and results["runs"][0]["ceiling"] > 0
    labels = [f"labels/part-{i:05d}.parquet" for i in range(4)]
    assert [k for k in arrays["one"] if k.startswith("labels")] == labels
    for several in ("two", "sharded", "three"):
        assert arrays["one"].keys() == arrays[several].keys()
    for name, values in arrays["one"].items():
        for several in ("two", "sharded"):
            assert np.abs(values - arrays[several][name]).max() < 1e-4, (name, several)


def test_ranks_wait_for_another_run_longer_than_for_each_other(tmp_path: Path) -> None:
    """A stage that this test computes: rank 0 waits for it, and nobody takes it for lost."""
    arguments = ["run", "--config", str(write(impatient(tmp_path), tmp_path))]
    locks = tmp_path / "out" / "cache" / ".locks"
    ranks.run(__file__, 2, [*arguments, "--quiet"])
    for stage in (tmp_path / "out" / "cache").glob("student-*"):
        shutil.rmtree(stage)
    (lock,) = locks.glob("student-*")
    with file_lock(lock):
        found = ranks.start(__file__, 2, json.dumps(arguments))
        time.sleep(10)
        assert [p.poll() for p in found] == [None, None]
    said = [p.communicate(timeout=60)[0] for p in found]
    assert [p.returncode for p in found] == [0, 0], said
    assert f"waiting for process {os.getpid()}, which computes" in said[0]


def test_a_stage_that_is_published_slowly_and_in_vain(tmp_path: Path) -> None:
    """Rank 0 hashes for longer than a collective call may take; every rank hears of its error."""
    job = ["run", "--config", str(write(impatient(tmp_path), tmp_path)), "--quiet"]
    for p in ranks.start(__file__, 2, json.dumps(job), W2S_TEST_FULL_DISK="student"):
        text, _ = p.communicate(timeout=120)
        assert p.returncode == 2 and "no space left while writing stage" in text, text
    cache = tmp_path / "out" / "cache"
    assert not list(cache.glob("student-*"))
    (computed,) = (path.stat() for path in cache.glob(".student-*/test.parquet"))
    ranks.run(__file__, 2, job)
    (published,) = (path.stat() for path in cache.glob("student-*/test.parquet"))
    assert published.st_mtime_ns == computed.st_mtime_ns  # nothing is trained again


def test_models_that_only_predict_are_sharded_too(tmp_path: Path) -> None:
    """Weak model, intermediate model and cached states at ZeRO-3: as by one process."""
    arrays = {}
    source = str(checkpoint("llama", tmp_path / "llama", tokenizer()))
    for size, zero in ((1, 0), (2, 3)):
        folder = tmp_path / str(size)
        folder.mkdir()
        cfg = config(folder)
        cfg = dataclasses.replace(
            cfg,
            weak=ModelConfig(source),
            student=ModelConfig(source),
            weak_train=dataclasses.replace(cfg.weak_train, zero_stage=zero, timeout_s=300),
            student_train=dataclasses.replace(cfg.student_train, zero_stage=zero, timeout_s=300),
            intermediate_models=(source,),
            methods=("naive", "bootstrap", "knn_filter", "probe"),
            losses=("xent",),
        )
        ranks.run(__file__, size, ["run", "--config", str(write(cfg, folder)), "--quiet"])
        arrays[size] = tables(folder / "out")
    assert arrays[1].keys() == arrays[2].keys()
    for name in ("weak/test.parquet", "weak/ood.parquet", "intermediate/test.parquet"):
        assert np.abs(arrays[1][name] - arrays[2][name]).max() < 1e-4, name


def test_rounding_replicates_are_those_of_one_process(tmp_path: Path) -> None:
    probs = {}
    source = str(checkpoint("llama", tmp_path / "llama", tokenizer()))
    for size, zero in ((1, 0), (2, 3)):
        folder = tmp_path / str(size)
        folder.mkdir()
        cfg = dataclasses.replace(
            config(folder, zero_stage=zero), student=ModelConfig(source), rounding_replicates=1
        )
        ranks.run(__file__, size, ["run", "--config", str(write(cfg, folder)), "--quiet"])
        results = json.loads((folder / "out" / "results.json").read_text())
        assert results["summary"][0]["rounding_sd"] is not None
        for name in ("student/0/logconf", "student/0/logconf/rounding-1"):
            stage = results["provenance"]["stages"][name]["folder"]
            table = pq.read_table(folder / "out" / "cache" / stage / "test.parquet")
            probs[size, name] = np.array(table["probs"].to_pylist(), np.float32)
    student, replicate = "student/0/logconf", "student/0/logconf/rounding-1"
    for name in (student, replicate):
        assert np.abs(probs[1, name] - probs[2, name]).max() < 1e-4, name
    for size in (1, 2):
        assert (probs[size, student] != probs[size, replicate]).any()


def test_an_error_of_the_store_is_one_of_every_rank(tmp_path: Path) -> None:
    job = ["run", "--config", str(write(config(tmp_path), tmp_path)), "--quiet"]
    ranks.run(__file__, 2, job)
    (folder,) = (tmp_path / "out" / "cache").glob("labels-*")
    record = read_sealed(folder / "stage.json")
    write_sealed(folder / "stage.json", {**record, "key": "f" * 64})
    for p in ranks.start(__file__, 2, json.dumps(job)):
        text, _ = p.communicate(timeout=120)
        assert p.returncode == 2, text
        assert "error: " in text and "holds the result of another configuration" in text


def test_calibration_and_diagnostics_are_those_of_one_process(tmp_path: Path) -> None:
    """On two processes: calibrated labels, recorded fit, overlap and misfit."""
    found = {}
    for name, size, zero in (("one", 1, 0), *((f"zero{z}", 2, z) for z in ranks.ZERO_STAGES[0])):
        folder = tmp_path / name
        folder.mkdir()
        cfg = config(folder, zero_stage=zero)
        cfg = dataclasses.replace(
            cfg,
            task=TaskConfig(name="agreement", n_weak=60, n_transfer=96, n_test=40),
            weak_train=dataclasses.replace(cfg.weak_train, zero_stage=zero),
            weak_calibration="platt",
            calibration_folds=2,
            diagnostics=("fit", "overlap"),
            losses=("xent",),
        )
        ranks.run(__file__, size, ["run", "--config", str(write(cfg, folder)), "--quiet"])
        found[name] = json.loads((folder / "out" / "results.json").read_text())
    one = found.pop("one")
    (row,), (run,) = one["weak_labels"], one["runs"]
    assert row["calibration"]["applied"] and row["overlap"]["density"] is not None
    for several in found.values():
        (other,), (other_run,) = several["weak_labels"], several["runs"]
        for end in ("before", "after"):
            scores, expected = (r["calibration"][end] for r in (other, row))
            assert scores == pytest.approx(expected, abs=1e-3)
        assert other["calibration"]["scale"] == pytest.approx(row["calibration"]["scale"], rel=0.01)
        assert other["overlap"]["density"] == pytest.approx(row["overlap"]["density"], abs=0.05)
        assert other_run["misfit"] == pytest.approx(run["misfit"], abs=1e-3)
        fit, expected = other_run["fit"], run["fit"]
        assert (fit["n"], fit["steps"]) == (expected["n"], expected["steps"])
        assert fit["misfit"] == pytest.approx(expected["misfit"], abs=1e-3)
        assert fit["agreement"] == pytest.approx(expected["agreement"], abs=0.03)


def supervised(folder: Path, zero: int) -> RunConfig:
    """Two weak models, functions of the user, and functions learned from hidden states."""
    rules = folder / "rules.py"
    rules.write_text(
        "from w2s_fast.labeling import keywords, regex\n"
        "plural = regex(1, 's$')\nsingular = regex(0, '[^s]$')\nfew = keywords(1, ['some'])\n"
    )
    sources = ("weak", f"functions:{rules}", "weak:member=1", "stumps:max_functions=3")
    cfg = config(folder, zero_stage=zero)
    return dataclasses.replace(
        cfg,
        weak_train=dataclasses.replace(cfg.weak_train, zero_stage=zero),
        supervisors=SupervisorsConfig(sources, label_model="weighted", row_weight="confidence"),
        losses=("xent",),
    )


def test_supervisors_are_those_of_one_process(tmp_path: Path) -> None:
    """On two processes: votes of all kinds of sources, posteriors, student."""
    found = {}
    for name, size, zero in (("one", 1, 0), *((f"zero{z}", 2, z) for z in ranks.ZERO_STAGES[1])):
        folder = tmp_path / name
        folder.mkdir()
        cfg = supervised(folder, zero)
        ranks.run(__file__, size, ["run", "--config", str(write(cfg, folder)), "--quiet"])
        results = json.loads((folder / "out" / "results.json").read_text())
        stages = results["provenance"]["stages"]
        test = folder / "out" / "cache" / stages["student/0/xent"]["folder"] / "test.parquet"
        labels = folder / "out" / "cache" / stages["posterior/0"]["folder"] / "labels"
        found[name] = results["supervisors"], pq.read_table(test), pq.read_table(labels)
    (row,), student, labels = found.pop("one")
    names = [source["name"] for source in row["sources"]]
    assert len(names) >= 5 and len(set(labels["weight"].to_pylist())) > 2
    for other in found.values():
        (their_row,), their_student, their_labels = other
        assert [source["name"] for source in their_row["sources"]] == names
        for source, theirs in zip(row["sources"], their_row["sources"], strict=True):
            assert theirs["coverage"] == pytest.approx(source["coverage"], abs=0.01)
            assert theirs["accuracy"] == pytest.approx(source["accuracy"], abs=0.01)
        for mine, its in ((labels, their_labels), (student, their_student)):
            assert mine["id"] == its["id"]
            ours, theirs = (np.array(t["probs"].to_pylist()) for t in (mine, its))
            # A vote at a threshold may turn with the last bit of a hidden state.
            assert np.quantile(np.abs(ours - theirs), 0.98) < 1e-3


def test_a_posterior_resumes_after_a_kill(tmp_path: Path) -> None:
    """Killed while the posterior is written, on two ranks; then as a run without a kill."""
    outputs = []
    for name in ("straight", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        job = ["label", "--config", str(write(supervised(folder, 3), folder)), "--quiet"]
        if name == "killed":
            processes = ranks.start(__file__, 2, json.dumps(job), W2S_TEST_SLOW_LABELS="1")
            end = time.monotonic() + 120
            while not list((folder / "out").glob("cache/.posterior-*")):
                assert time.monotonic() < end
                time.sleep(0.005)
            for p in processes:
                p.send_signal(signal.SIGKILL)
                p.communicate()
            assert not list((folder / "out").glob("cache/posterior-*"))
            finished = {p: p.stat().st_mtime_ns for p in (folder / "out").glob("cache/votes-*/*")}
            assert finished
        ranks.run(__file__, 2, job)
        outputs.append([p.read_bytes() for p in sorted((folder / "out/labels/0").iterdir())])
    assert outputs[0] == outputs[1]
    assert finished == {p: p.stat().st_mtime_ns for p in finished}  # votes are not cast again


def test_calibrated_labels_resume_after_a_kill(tmp_path: Path) -> None:
    """The finished part of the labels stays, and the others equal those of an unkilled run."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    outputs = []
    for folder in (straight, killed):
        folder.mkdir()
        cfg = dataclasses.replace(config(folder), weak_calibration="platt", calibration_folds=2)
        job = ["label", "--config", str(write(cfg, folder)), "--quiet"]
        if folder is killed:
            processes = ranks.start(__file__, 2, json.dumps(job), W2S_TEST_SLOW_LABELS="1")
            end = time.monotonic() + 120
            pattern = "cache/.labels-*/checkpoint/labels/part-00001.parquet"
            while not (parts := list((folder / "out").glob(pattern))):
                assert time.monotonic() < end
                time.sleep(0.01)
            for p in processes:
                p.send_signal(signal.SIGKILL)
                p.communicate()
            first = parts[0].with_name("part-00000.parquet")
            before = first.read_bytes()
        ranks.run(__file__, 2, job)
        folder_of_labels = Path(cfg.output_dir) / "labels" / "0"
        outputs.append({p.name: p.read_bytes() for p in folder_of_labels.iterdir()})
    assert len(outputs[0]) == 4 and outputs[0] == outputs[1]
    assert before in {
        p.read_bytes() for p in (killed / "out").glob("cache/labels-*/labels/*0.parquet")
    }


def test_labelling_is_byte_for_byte_and_resumes(tmp_path: Path) -> None:
    """A supervisor trained once; labelled by one, by two, and by two after a kill in between."""
    cfg = config(tmp_path)
    path = write(cfg, tmp_path)
    ranks.run(__file__, 1, ["label", "--config", str(path), "--quiet"])
    cache = Path(cfg.output_dir) / "cache"
    (folder,) = cache.glob("labels-*")
    want = {p.name: p.read_bytes() for p in (folder / "labels").iterdir()}
    assert len(want) == 4
    for kill in (False, True):
        subprocess.run(["rm", "-r", str(folder)], check=True)
        job = ["label", "--config", str(path), "--quiet"]
        if kill:
            processes = ranks.start(__file__, 2, json.dumps(job), W2S_TEST_SLOW_LABELS="1")
            parts = f".{folder.name}/checkpoint/labels"
            end = time.monotonic() + 60
            while not (cache / parts / "part-00001.parquet").exists():
                assert time.monotonic() < end
                time.sleep(0.01)
            for p in processes:
                p.send_signal(signal.SIGKILL)
                p.communicate()
            first = cache / parts / "part-00000.parquet"
            stamp = first.stat().st_mtime_ns
            (cache / parts / "part-00001.parquet").write_bytes(b"half")  # half-written
        ranks.run(__file__, 2, job)
        got = {p.name: p.read_bytes() for p in (folder / "labels").iterdir()}
        assert got == want
        if kill:
            assert (folder / "labels" / "part-00000.parquet").stat().st_mtime_ns == stamp


def test_a_node_with_other_data_is_named(tmp_path: Path) -> None:
    path = write(config(tmp_path), tmp_path)
    job = json.dumps(["run", "--config", str(path), "--quiet"])
    processes = ranks.start(__file__, 2, job, W2S_TEST_OTHER_RANK="1")
    outputs = [p.communicate(timeout=120)[0] for p in processes]
    assert all(p.returncode for p in processes)
    assert "data is " in outputs[0] and "(rank 1)" in outputs[0] + outputs[1], outputs
    assert not list((Path(path).parent / "out" / "cache").glob("weak-*"))


def test_a_node_with_another_checkpoint_is_named(tmp_path: Path) -> None:
    """One path, which leads each rank to a folder of its own; they differ in one byte."""
    for rank in "01":
        checkpoint("llama", tmp_path / rank / "student", tokenizer())
    weights = tmp_path / "1" / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    cfg = dataclasses.replace(config(tmp_path), student=ModelConfig("/proc/self/cwd/student"))
    job = json.dumps(["run", "--config", str(write(cfg, tmp_path)), "--quiet"])
    processes = ranks.start(__file__, 2, job, W2S_TEST_FOLDER_OF_RANK=str(tmp_path))
    outputs = [p.communicate(timeout=120)[0] for p in processes]
    assert all(p.returncode for p in processes)
    assert "the checkpoint /proc/self/cwd/student is " in outputs[0], outputs
    assert "(rank 1)" in outputs[0] and not list((tmp_path / "out" / "cache").glob("weak-*"))


def test_export_loads_in_transformers(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    from w2s_fast.pipeline import run

    cfg = dataclasses.replace(config(tmp_path), workers=1)
    cfg = dataclasses.replace(cfg, student=dataclasses.replace(cfg.student, lora_rank=2))
    with pytest.raises(W2SError, match="student/0/logconf is not finished"):
        export(cfg, "student/0/logconf", tmp_path / "too-early")
    run(cfg)
    folder = tmp_path / "model"
    export(cfg, "student/0/logconf", folder)
    base, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    head, about = load_file(folder / HEAD), json.loads((folder / ABOUT).read_text())
    assert about == {
        "pooling": "last", "kind": "classification", "classes": 2,
        "class_names": ["singular", "plural"], "max_length": 512, "dtype": "fp32",
    }  # fmt: skip
    data = load_data(cfg.task, 0).test
    want = tables(Path(cfg.output_dir))["student/test.parquet"]
    for i in (0, 7):
        ids = torch.tensor([tokenizer(data.texts[i])["input_ids"]])
        hidden = base(input_ids=ids).last_hidden_state[0, -1]
        probs = (head["weight"] @ hidden + head["bias"]).softmax(0)
        assert np.allclose(probs.detach().numpy(), want[i], atol=1e-5)
    with pytest.raises(W2SError, match="is not empty"):
        export(cfg, "student/0/logconf", folder)
    with pytest.raises(W2SError, match="no stage 'student/0/xent' .*did you mean"):
        export(cfg, "student/0/xent", tmp_path / "other")


def main(args: list[str]) -> int:
    import os

    predict.PART_ROWS = SHARD
    if os.environ.get("W2S_TEST_SLOW_LABELS"):
        whole = artifacts.write_probs

        def slow(*given: Any) -> None:
            whole(*given)
            time.sleep(1.0)

        artifacts.write_probs = slow  # type: ignore[assignment]
    if os.environ.get("W2S_TEST_OTHER_RANK") == os.environ["RANK"]:
        from w2s_fast.pipeline import experiment

        right = experiment.data_digests
        experiment.data_digests = lambda d: right(d) | {"test.inputs": "another copy"}
    if stage := os.environ.get("W2S_TEST_FULL_DISK"):
        publish = store._publish

        def in_vain(temp: Path, final: Path) -> Any:
            if not final.name.startswith(stage):
                return publish(temp, final)
            time.sleep(10)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        store._publish = in_vain
    if folder := os.environ.get("W2S_TEST_FOLDER_OF_RANK"):
        os.chdir(Path(folder) / os.environ["RANK"])
    return cli.main(args)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
