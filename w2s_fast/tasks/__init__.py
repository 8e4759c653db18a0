"""Tasks: sources of labelled texts. To add one, write its file and add one line to `TASKS`."""

from __future__ import annotations

from importlib import import_module

from w2s_fast.errors import W2SError, nearest
from w2s_fast.tasks._agreement_config import OodConfig, PretrainConfig, ShortcutConfig
from w2s_fast.tasks._base import Examples, Inputs, Task, TaskData
from w2s_fast.tasks._check import check_texts
from w2s_fast.tasks._config import ChessConfig, TaskConfig
from w2s_fast.tasks._embedded import EMBEDDED, EmbeddedModel, task_tokenizer
from w2s_fast.tasks._read_once import reading_once
from w2s_fast.tasks.datasets.agreement import Agreement
from w2s_fast.tasks.datasets.amazon_polarity import AMAZON_POLARITY
from w2s_fast.tasks.datasets.anli_r2 import ANLI_R2
from w2s_fast.tasks.datasets.anthropic_hh import ANTHROPIC_HH
from w2s_fast.tasks.datasets.boolq import BOOLQ
from w2s_fast.tasks.datasets.chess import Chess
from w2s_fast.tasks.datasets.cola import COLA
from w2s_fast.tasks.datasets.cosmos_qa import COSMOS_QA
from w2s_fast.tasks.datasets.dream import DREAM
from w2s_fast.tasks.datasets.ethics import (
    ETHICS_DEONTOLOGY,
    ETHICS_JUSTICE,
    ETHICS_UTILITARIANISM,
    ETHICS_VIRTUE,
)
from w2s_fast.tasks.datasets.gsm8k import GSM8K
from w2s_fast.tasks.datasets.hellaswag import HELLASWAG
from w2s_fast.tasks.datasets.hh_rlhf import HH_RLHF
from w2s_fast.tasks.datasets.local import Local
from w2s_fast.tasks.datasets.local_answers import LocalAnswers
from w2s_fast.tasks.datasets.mc_taco import MC_TACO
from w2s_fast.tasks.datasets.multirc import MULTIRC
from w2s_fast.tasks.datasets.openbookqa import OPENBOOKQA
from w2s_fast.tasks.datasets.pairs import Pairs
from w2s_fast.tasks.datasets.paws import PAWS
from w2s_fast.tasks.datasets.piqa import PIQA
from w2s_fast.tasks.datasets.quail import QUAIL
from w2s_fast.tasks.datasets.quartz import QUARTZ
from w2s_fast.tasks.datasets.sciq import SCIQ, SCIQ_WITH_SUPPORT
from w2s_fast.tasks.datasets.social_i_qa import SOCIAL_I_QA
from w2s_fast.tasks.datasets.sst2 import SST2
from w2s_fast.tasks.datasets.twitter_sentiment import TWITTER_SENTIMENT
from w2s_fast.tasks.datasets.wic import WIC
from w2s_fast.tasks.datasets.word_problems import WordProblems
from w2s_fast.tasks.datasets.wts_legal import WTS_LEGAL
from w2s_fast.tasks.datasets.wts_safety import Safety
from w2s_fast.tasks.datasets.wts_toxicity import Toxicity

__all__ = [
    "EMBEDDED",
    "TASKS",
    "ChessConfig",
    "EmbeddedModel",
    "Examples",
    "Inputs",
    "OodConfig",
    "PretrainConfig",
    "ShortcutConfig",
    "Task",
    "TaskConfig",
    "TaskData",
    "check_texts",
    "get_task",
    "reading_once",
    "task_tokenizer",
]

TASKS: dict[str, Task] = {
    "agreement": Agreement(),
    "local": Local(),
    "sciq": SCIQ,
    "sciq_with_support": SCIQ_WITH_SUPPORT,
    "boolq": BOOLQ,
    "cosmos_qa": COSMOS_QA,
    "amazon_polarity": AMAZON_POLARITY,
    "anthropic_hh": ANTHROPIC_HH,
    "anli_r2": ANLI_R2,
    "cola": COLA,
    "dream": DREAM,
    "ethics_deontology": ETHICS_DEONTOLOGY,
    "ethics_justice": ETHICS_JUSTICE,
    "ethics_virtue": ETHICS_VIRTUE,
    "ethics_utilitarianism": ETHICS_UTILITARIANISM,
    "hellaswag": HELLASWAG,
    "mc_taco": MC_TACO,
    "multirc": MULTIRC,
    "openbookqa": OPENBOOKQA,
    "paws": PAWS,
    "piqa": PIQA,
    "quail": QUAIL,
    "quartz": QUARTZ,
    "social_i_qa": SOCIAL_I_QA,
    "sst2": SST2,
    "twitter_sentiment": TWITTER_SENTIMENT,
    "wic": WIC,
    "hh_rlhf": HH_RLHF,
    "pairs": Pairs(),
    "gsm8k": GSM8K,
    "local_answers": LocalAnswers(),
    "chess": Chess(),
    "word_problems": WordProblems(),
    "wts_safety": Safety(),
    "wts_toxicity": Toxicity(),
    "wts_legal": WTS_LEGAL,
}


def get_task(name: str) -> Task:
    """Return a task by its key in ``TASKS``, or import it from "pkg.module:Name".

    Raises:
        W2SError: There is no such task, or the imported object has no ``load``.
    """
    if name in TASKS:
        return TASKS[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise W2SError(
            f"unknown task {name!r}{nearest(name, TASKS)}; expected one of {', '.join(TASKS)}, or "
            "'pkg.module:Name' for your own"
        )
    try:
        imported = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise W2SError(
            f"task {name!r} could not be imported ({error}); expected 'pkg.module:Name' on the "
            "Python path"
        ) from error
    task = imported() if isinstance(imported, type) else imported
    if not isinstance(task, Task):
        raise W2SError(f"task {name!r} has no load(cfg, seed); expected a task or its class")
    return task
