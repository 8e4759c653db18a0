"""``python -m bench COMMAND ...``: dispatch to the module of a command; the default is ``run``."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {  # name -> (module, what it does)
    "run": ("run", "time the ops against eager PyTorch, torch.compile and the memory floor"),
    "compare": ("compare", "name the cases that are slower than in the committed rows"),
    "trainers": ("cases.trainers", "time whole training steps in trainers"),
    "heads": ("cases.heads", "time sweeps of linear heads on cached features"),
    "logprob_entropy": ("cases.logprob_entropy", "time log-probabilities with entropy, and TRL's"),
    "info_nce": ("cases.info_nce", "InfoNCE against eager, compiled and sentence-transformers"),
    "products": ("cases.products", "time a 16-bit head with and without 16-bit CPU instructions"),
    "scale": ("cases.scale", "measure labelling, the exact threshold's exchange, and memory"),
    "gpu": ("gpu.suite", "build, test and time everything on a machine with a CUDA device"),
    "coverage": ("intervals.command", "simulate how often intervals contain what they estimate"),
    "alarm": ("alarm.command", "measure how often the alarm of a fitted error is right"),
    "w2s": ("cases.w2s", "repeat the weak-to-strong experiments of docs/results.md"),
    "label_models": (
        "label_models.command",
        "label models on WRENCH data, against Snorkel and crowd-kit",
    ),
    "supervised": ("supervised.command", "label models to students on YouTube comments and SST-2"),
    "labeling": ("labeling.command", "labeling functions from 100 labels against few-shot"),
    "deception": ("deception.command", "students under a conflict on harmless pairs"),
    "evidence": ("evidence.command", "repeat the experiments of docs/evidence.md on real data"),
    "verifiers": ("cases.verifiers", "repeat the selections of docs/verifiers.md"),
    "reasoning": ("reasoning.command", "released files of weak-to-strong reasoning, and sampling"),
    "delta": ("delta.command", "pairs of two weak generators, and the controls, on sorted digits"),
    "side_by_side": ("side_by_side.command", "other weak-to-strong code bases on equal work"),
    "architectures": ("architectures.command", "check every class of transformers after patch"),
    "report": ("report.documents", "write the tables of the documents from the committed rows"),
    "plot": ("report.pictures", "draw the pictures of the documents from the committed rows"),
}


def main(args: list[str]) -> int:
    """Run a command; return its exit code."""
    if args and args[0] in ("-h", "--help"):
        print("usage: python -m bench [COMMAND] [options]   (default: run)\n\ncommands:")
        print("\n".join(f"  {name:<14} {text}" for name, (_, text) in COMMANDS.items()))
        return 0
    name, rest = (args[0], args[1:]) if args and args[0] in COMMANDS else ("run", args)
    return importlib.import_module(f"bench.{COMMANDS[name][0]}").main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
