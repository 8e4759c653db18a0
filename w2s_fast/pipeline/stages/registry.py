"""The stages of a run: pure functions of settings, input folders and a seed, one folder each.

``weak`` learns true labels of the weak split and ``labels`` predicts the transfer split with it.
``student`` learns these weak labels, ``ceiling`` the true labels of the same texts, and ``control``
the weak labels without pretraining. ``method_inputs`` has the stages that methods add. All models
are scored on the same test items.
"""

from __future__ import annotations

from collections.abc import Callable

from w2s_fast.pipeline.artifacts import PRETRAINED, TOKENIZER
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages import method_inputs, report, transcripts
from w2s_fast.pipeline.stages.boosting import boosting
from w2s_fast.pipeline.stages.calibration import calibration
from w2s_fast.pipeline.stages.compressed import compressed
from w2s_fast.pipeline.stages.gate import gate
from w2s_fast.pipeline.stages.merge import merge
from w2s_fast.pipeline.stages.overlap import overlap
from w2s_fast.pipeline.stages.posterior import posterior
from w2s_fast.pipeline.stages.predict import labels
from w2s_fast.pipeline.stages.prototype_head import prototype_student
from w2s_fast.pipeline.stages.samples import samples
from w2s_fast.pipeline.stages.supervisor_card import supervisor_card
from w2s_fast.pipeline.stages.text_labels import pair_logprob, perplexity, text_labels
from w2s_fast.pipeline.stages.train import train_model
from w2s_fast.pipeline.stages.trust import trust
from w2s_fast.pipeline.stages.votes import generated_votes, votes
from w2s_fast.store import StageBuild
from w2s_fast.tasks import EMBEDDED


def pretrain(ctx: Context, build: StageBuild) -> None:
    """Pretrain an embedded task's language model, without labels."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # transformers shows one for saving
    target = build.path / PRETRAINED
    model = EMBEDDED[ctx.job.setting("source", "agreement-lm")]
    ctx.write(lambda: model.pretrain(target, ctx.cfg.task, ctx.seed, ctx.progress))


def tokenizer(ctx: Context, build: StageBuild) -> None:
    """Train a tokenizer on the texts of the weak and the transfer split."""
    from w2s_fast.models.text_tokenizer import train_tokenizer

    def write() -> None:
        splits = [ctx.inputs(name) for name in ("weak", "transfer")]
        texts = [text for split in splits for text in (*split.texts, *(split.pairs or ()))]
        train_tokenizer(texts).save_pretrained(build.path / TOKENIZER)

    ctx.write(write)


def student(ctx: Context, build: StageBuild) -> None:
    """Train a student, or make it of prototypes or of the weights of trained ones."""
    made = {None: train_model, "prototype_head": prototype_student}
    made.get(ctx.job.setting("merge"), merge)(ctx, build)


STAGES: dict[str, Callable[[Context, StageBuild], None]] = {
    "pretrain": pretrain,
    "tokenizer": tokenizer,
    "weak": train_model,
    "labels": labels,
    "calibration": calibration,
    "intermediate": train_model,
    "student": student,
    "ceiling": train_model,
    "control": train_model,  # `new_model` leaves the pretrained weights out
    "tuned": method_inputs.tuned,
    "backbone": method_inputs.backbone,
    "compressed": compressed,
    "features": method_inputs.features,
    "prior": method_inputs.prior,
    "balance": method_inputs.balance,
    "transcripts": transcripts.transcripts,
    "trajectory": method_inputs.trajectory,
    "apply": method_inputs.apply,
    "votes": votes,
    "generated_votes": generated_votes,
    "gate": gate,
    "boosting": boosting,
    "posterior": posterior,
    "trust": trust,
    "overlap": overlap,
    "supervisor_card": supervisor_card,
    "samples": samples,
    "text_labels": text_labels,
    "pair_logprob": pair_logprob,
    "perplexity": perplexity,
    "reference": pair_logprob,  # of untrained policies, the same for every preference loss
    "report": report.report,
}
