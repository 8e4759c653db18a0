"""Hints for a setting that does not exist: another library's word, another block, or a typo."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from w2s_fast.errors import nearest

# What other libraries call a setting -> its name here.
_SAME_MEANING = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "per_device_train_batch_size": "micro_batch_size",
    "minibatch_size_per_device": "micro_batch_size",
    "train_batch_size": "batch_size",
    "lr_scheduler_type": "schedule",
    "lr_schedule": "schedule",
    "warmup_ratio": "warmup_frac",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps",
    "max_grad_norm": "clip_norm",
    "max_seq_length": "max_length",
    "max_ctx": "max_length",
    "save_steps": "checkpoint_every",
    "model_name_or_path": "source",
    "model_size": "source",
    "torch_dtype": "dtype",
    "lora_r": "lora_rank",
    "loss": "losses",
    "method": "methods",
    "seed": "seeds",
    "dataset": "name",
    "ds_name": "name",
}


def setting_hint(name: str, known: Collection[str]) -> str:
    """Return the end of a message about an unknown setting: the names that may be meant.

    Args:
        name: Dotted name that is no setting.
        known: Dotted names of all settings, in order.
    """
    reverse = reversed(list(known))  # of a block the first setting remains
    blocks = {k.rsplit(".", i)[0]: k for k in reverse for i in range(1, k.count(".") + 1)}
    if name in blocks:
        return f"; it is a block of settings, such as {blocks[name]!r}; set those"
    renamed = nearest(name, [*known, *blocks])
    if "now called" in renamed:
        return renamed
    block, _, leaf = name.rpartition(".")
    wanted = _SAME_MEANING.get(leaf, leaf)
    same_leaf = [k for k in known if k.rpartition(".")[2] == wanted]
    beside = [k for k in same_leaf if k.rpartition(".")[0] == block]
    if named := beside or same_leaf:  # another word, or the wrong block, is likelier than a typo
        names = " and ".join(map(repr, named))
        return f"; there is {names}" if named[1:] else f"; did you mean {names}?"
    if block in blocks:  # a long common prefix makes any two of a block look alike
        leaves = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == block]
        close = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)
        renamed = f"; did you mean {f'{block}.{close[0]}'!r}?" if close else ""
    return renamed or "; see --print-config for all of them"
