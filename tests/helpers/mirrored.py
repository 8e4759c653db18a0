"""A task of the user whose out-of-distribution items are its test items once more."""

from __future__ import annotations

from dataclasses import replace

from w2s_fast.tasks import OodConfig, ShortcutConfig, TaskConfig, TaskData, get_task


class Mirrored:
    """The embedded task with a shortcut; every model predicts its test items twice."""

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """See ``Task``."""
        shortcut = ShortcutConfig(availability=2, predictivity=0.8)
        embedded = replace(cfg, name="agreement", shortcut=shortcut)
        data = get_task("agreement").load(embedded, seed)
        return replace(data, name=cfg.name, ood=data.test)


class Unshifted:
    """The embedded task without out-of-distribution items, whatever is asked for."""

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """See ``Task``."""
        data = get_task("agreement").load(replace(cfg, name="agreement", ood=OodConfig()), seed)
        return replace(data, name=cfg.name)
