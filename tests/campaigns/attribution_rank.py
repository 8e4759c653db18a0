"""A rank of the campaign attribution: the command, with what goes wrong on one rank."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from w2s_fast.losses._base import LossContext, LossOut
from w2s_fast.losses.xent import Xent


@dataclass(frozen=True, kw_only=True)
class Poisoned(Xent):
    """Cross-entropy whose value becomes NaN on one rank once a file exists."""

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        """See ``Loss.forward``."""
        out = super().forward(logits, weak, ctx)
        hit = os.environ.get("RANK") == os.environ.get("CAMPAIGN_RANK")
        if hit and Path(os.environ["CAMPAIGN_POISON"]).exists():
            return out._replace(loss_sum=out.loss_sum * float("nan"))
        return out


if __name__ == "__main__":
    if os.environ["RANK"] == os.environ["CAMPAIGN_RANK"] and "CAMPAIGN_VERSION" in os.environ:
        sys.path.insert(0, os.environ["CAMPAIGN_VERSION"])
    from w2s_fast.cli.main import main

    sys.exit(main())
