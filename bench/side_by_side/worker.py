"""Run one job in this process, the only one that it serves: ``python -m ...worker JOB RESULT``.

The process belongs to the interpreter of a code base, so this module imports the standard library,
torch and the code base alone. It applies the shims, runs the user's script, and observes it: the
time of every optimizer step by torch's global hook, the loss of every step, and the resident set.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.side_by_side.shims import SHIMS

_MIB = 1024.0


def main(job_file: str, result_file: str) -> None:
    """Run the job of a JSON file and write what was observed to another.

    Args:
        job_file: ``bench.side_by_side.inputs.Job`` as JSON.
        result_file: Receives ``probabilities`` (of class 1, a test row each), ``losses`` (a step
            each), ``step_ends_s`` (wall time and CPU time at the end of every optimizer step),
            ``rss_start_mib`` (at the first forward pass: libraries, model and data are loaded)
            and ``rss_peak_mib``.
    """
    job = json.loads(Path(job_file).read_text())
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook
    from torch.optim.optimizer import register_optimizer_step_post_hook

    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    script = importlib.import_module(f"bench.side_by_side.scripts.{job['system']}")
    for shim in SHIMS[job["system"]]:
        shim.apply()
    losses = OBSERVERS[job["system"]](script, job)
    ends: list[tuple[float, float]] = []
    at_start: list[float] = []
    clocks = (time.perf_counter, time.process_time)
    register_optimizer_step_post_hook(lambda *_: ends.append(tuple(clock() for clock in clocks)))

    def first_forward(*_: Any) -> None:
        at_start.append(_status_mib("VmRSS"))
        handle.remove()

    handle = register_module_forward_pre_hook(first_forward)
    probabilities = [float(p) for p in script.run(job)]
    result = {
        "probabilities": probabilities,
        "losses": losses(),
        "step_ends_s": ends,
        "rss_start_mib": at_start[0],
        "rss_peak_mib": _status_mib("VmHWM"),
    }
    Path(result_file).write_text(json.dumps(result))


def _openai_losses(script: Any, job: dict[str, Any]) -> Callable[[], list[float]]:
    """The code base writes them to log.jsonl; its last line is that of the evaluation."""

    def read() -> list[float]:
        lines = (Path(job["out"]) / "log.jsonl").read_text().splitlines()
        return [row["loss"] for row in map(json.loads, lines) if "loss" in row]

    return read


def _eleuther_losses(script: Any, job: dict[str, Any]) -> Callable[[], list[float]]:
    """The Trainer rounds what it logs, so the returned losses are recorded."""
    from w2s.sft import CustomLossTrainer

    seen: list[Any] = []
    plain = CustomLossTrainer.compute_loss

    def recorded(trainer: Any, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        out = plain(trainer, model, inputs, return_outputs)
        if model.training:
            seen.append((out[0] if return_outputs else out).detach())
        return out

    CustomLossTrainer.compute_loss = recorded

    def mean_of_steps() -> list[float]:
        n = job["batch_size"] // job["micro_batch_size"]
        values = [float(loss) for loss in seen]
        return [sum(values[i : i + n]) / n for i in range(0, len(values), n)]

    return mean_of_steps


def _our_losses(script: Any, job: dict[str, Any]) -> Callable[[], list[float]]:
    """``train`` returns them."""
    results: list[dict[str, Any]] = []
    plain = script.train

    def recorded(*args: Any, **options: Any) -> dict[str, Any]:
        results.append(plain(*args, **options))
        return results[-1]

    script.train = recorded
    return lambda: [float(loss) for result in results for loss in result["losses"]]


OBSERVERS: dict[str, Callable[[Any, dict[str, Any]], Callable[[], list[float]]]] = {
    "openai": _openai_losses,
    "eleuther": _eleuther_losses,
    "ours": _our_losses,
}


def _status_mib(name: str) -> float:
    """Return a field of /proc/self/status in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1]) / _MIB
    raise KeyError(name)


if __name__ == "__main__":
    main(*sys.argv[1:])
