"""The files of examples/clusters: the array runs as it is, the others are held to their formats."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.paths import ROOT
from torch.distributed.run import get_args_parser

from w2s_fast.cli.parse import load
from w2s_fast.config import RunConfig

FOLDER = ROOT / "examples" / "clusters"
ARRAY = FOLDER / "sweep_array.sh"
CONTAINER = FOLDER / "Containerfile"
SWEEP = """
run:
  task: {n_weak: 60, n_transfer: 60, n_test: 60}
  weak_train: {epochs: 1, lr: 0.05}
  student_train: {epochs: 1, lr: 0.05}
  losses: [xent, logconf]
  seeds: [0, 1]
weak_models: [bow]
student_models: [bow]
devices: [cpu]
"""


def _start(folder: Path, *arguments: str, task: int | None = None) -> subprocess.Popen[str]:
    """Start the script as Slurm would: from the folder of the submission, with `python` in PATH."""
    shims = folder / "bin"
    shims.mkdir(exist_ok=True)
    if not (shims / "python").exists():
        (shims / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        (shims / "python").chmod(0o755)
    env = {**os.environ, "PATH": f"{shims}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "1"}
    env |= {} if task is None else {"SLURM_ARRAY_TASK_ID": str(task)}
    return subprocess.Popen(
        ["bash", str(ARRAY), "sizes.yaml", *arguments],
        cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def _wait(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output


def _stages(cache: Path) -> set[str]:
    return {p.name for p in cache.iterdir() if p.name[0] != "." and not p.name.startswith("report")}


def _runs(folder: Path) -> Any:
    cells = json.loads((folder / "sweep.json").read_text())["cells"]
    return [(cell["name"], cell["runs"], cell["summary"]) for cell in cells]


@pytest.mark.slow
def test_the_last_job_of_an_array_collects_what_a_task_stored(tmp_path: Path) -> None:
    (tmp_path / "sizes.yaml").write_text(SWEEP)
    _wait(_start(tmp_path, "out", task=1))
    before = _stages(tmp_path / "out/cache")
    _wait(_start(tmp_path, "out", "--run.seeds", "1"))
    assert _stages(tmp_path / "out/cache") == before
    assert _runs(tmp_path / "out") == _runs(tmp_path / "out/seed-1")
    assert [r["seed"] for _, runs, _ in _runs(tmp_path / "out") for r in runs] == [1, 1]


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("W2S_LONG"), reason="a minute: `make test-long`")
def test_an_array_gives_the_results_of_one_sweep(tmp_path: Path) -> None:
    """Two tasks at once fill a store; the last job computes no stage but its report."""
    (tmp_path / "sizes.yaml").write_text(SWEEP)
    tasks = [_start(tmp_path, "out", task=seed) for seed in (0, 1)]
    for process in [*tasks, _start(tmp_path, "alone")]:
        _wait(process)
    assert [r["seed"] for _, runs, _ in _runs(tmp_path / "out/seed-1") for r in runs] == [1, 1]
    before = _stages(tmp_path / "out/cache")
    _wait(_start(tmp_path, "out", "--run.seeds", "0", "1"))
    assert _stages(tmp_path / "out/cache") == before
    assert _runs(tmp_path / "out") == _runs(tmp_path / "alone")
    assert len(_runs(tmp_path / "alone")[0][1]) == 4


@pytest.mark.parametrize(
    "script", [ARRAY, ROOT / "examples/slurm.sh", FOLDER / "sky.yaml"], ids=lambda p: p.name
)
def test_scripts_are_valid(script: Path, tmp_path: Path) -> None:
    text = script.read_text()
    if script.suffix == ".yaml":
        parts = yaml.safe_load(text)
        text = f"#!/usr/bin/env bash\n{parts['setup']}{parts['run']}"
    file = tmp_path / "script.sh"
    file.write_text(text)
    tools = [["bash", "-n"], *([["shellcheck"]] if shutil.which("shellcheck") else [])]
    for tool in tools:
        done = subprocess.run([*tool, str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def _torchrun(words: list[str]) -> Any:
    """Read a command line as torchrun does, and the configuration that ours would get."""
    assert words[0] == "torchrun"
    options = get_args_parser().parse_args(words[1:])
    assert options.module and options.training_script == "w2s_fast"
    assert options.training_script_args[:2] == ["run", "--config"]
    return options


def test_jobset(tmp_path: Path) -> None:
    config, jobset = yaml.safe_load_all((FOLDER / "jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = jobset["spec"]["replicatedJobs"]
    hosts = job["template"]["spec"]
    pod = hosts["template"]["spec"]
    (container,) = pod["containers"]
    variable = "$(JOB_COMPLETION_INDEX)"  # which Kubernetes sets in the pods of an Indexed job
    assert f"--node-rank={variable}" in container["command"]
    options = _torchrun([word.replace(variable, "1") for word in container["command"]])
    assert int(options.nnodes) == hosts["parallelism"] == hosts["completions"]
    assert int(options.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert hosts["completionMode"] == "Indexed", "or pods have no index"
    # JobSet's names of pods: jobset-job-replica-pod.subdomain, and the subdomain is the jobset's.
    name = jobset["metadata"]["name"]
    assert options.master_addr == f"{name}-{job['name']}-0-0.{name}"
    # A pod that ends is a failure of the JobSet, which restarts all of its pods together.
    assert hosts["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0

    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    (source,) = (v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v)
    assert source == config["metadata"]["name"]
    folder, _, file = options.training_script_args[2].rpartition("/")
    assert folder == mounts["config"]
    (tmp_path / file).write_text(config["data"][file])
    run = load(RunConfig, paths=[tmp_path / file])
    assert run.output_dir.startswith(mounts["data"]) and run.student_train.zero_stage == 3


def _extras(text: str) -> set[str]:
    return {name for names in re.findall(r"\[([a-z,-]+)\]\"", text) for name in names.split(",")}


def test_sky() -> None:
    task = yaml.safe_load((FOLDER / "sky.yaml").read_text())
    assert task.keys() == {"name", "num_nodes", "workdir", "resources", "envs", "setup", "run"}
    values = {
        "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", **task["envs"],
    }  # fmt: skip
    shown = "torchrun() { printf '%s\\n' torchrun \"$@\"; }\n"
    done = subprocess.run(
        ["bash", "-euc", shown + task["run"]],
        env={"PATH": os.environ["PATH"], **values}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    options = _torchrun(done.stdout.splitlines())
    assert (options.nnodes, options.nproc_per_node, options.node_rank) == ("2", "8", 1)
    assert options.master_addr == "10.0.0.1"
    assert options.training_script_args[2] == task["envs"]["CONFIG"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = _extras(task["setup"]) | _extras(CONTAINER.read_text())
    assert named and named <= extras["optional-dependencies"].keys()


@pytest.mark.slow
def test_the_container_copies_what_the_wheel_is_built_from(tmp_path: Path) -> None:
    """The build runs here on a folder with the copied files alone; with the core in long tests."""
    text = CONTAINER.read_text()
    build = text.rpartition("\nFROM python")[0]
    for sources in re.findall(r"^COPY (.*)$", build, re.MULTILINE):
        *files, _ = sources.split()
        for name in files:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tmp_path / name)
    for stale in (tmp_path / "w2s_fast").glob("*.so"):
        stale.unlink()
    (command,) = re.findall(r"^RUN (W2S_STRICT.*)$", build, re.MULTILINE)
    command = command.replace("python", shlex.quote(sys.executable), 1)
    command = command.replace("--no-deps", "--no-deps --no-build-isolation --quiet")
    core = os.environ.get("W2S_LONG", "0")
    assert (tmp_path / "csrc").is_dir() and "W2S_STRICT=1" in command
    command = command.replace("W2S_STRICT=1", f"W2S_STRICT={core} W2S_CORE={core}")
    done = subprocess.run(
        command.replace("/wheels", "wheels"), shell=True, cwd=tmp_path, text=True, check=False,
        env={**os.environ, "CXXFLAGS": "-O0"}, capture_output=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "wheels").glob("w2s_fast-*.whl"))) == 1
    assert "COPY --from=build /wheels /wheels" in text
