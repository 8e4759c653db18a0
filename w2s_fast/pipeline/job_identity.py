"""What identifies the result of a job: its version, its settings, its data and its other inputs.

A stage is stored under the hash of these, so it is computed again where one of them changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from w2s_fast.config import RunConfig, at_seed, model_of, roles, run_seeds, to_dict, train_of
from w2s_fast.debate import make_protocol
from w2s_fast.files import content_hash, file_hash, tree_hash, tree_stamp
from w2s_fast.labeling import source_digest
from w2s_fast.labeling.loading import module_digest
from w2s_fast.methods import make_method
from w2s_fast.models import ModelConfig
from w2s_fast.models.checkpoint_source import is_checkpoint
from w2s_fast.paths import user_path
from w2s_fast.pipeline.jobs import FIRST_EMBEDDED, TRAINED, Job
from w2s_fast.tasks import EMBEDDED, TaskData
from w2s_fast.training.config import EXECUTION_FIELDS
from w2s_fast.training.deepspeed.config import precision_settings

# Raise a version when its stage computes something else from the same inputs: old results are then
# not reused.
VERSIONS = {
    "pretrain": 2,
    "tokenizer": 1,
    "weak": 1,
    "labels": 1,
    "calibration": 1,
    "intermediate": 1,
    "student": 1,
    "ceiling": 1,
    "control": 1,
    "tuned": 1,
    "features": 1,
    "prior": 1,
    "balance": 1,
    "transcripts": 1,
    "trajectory": 1,
    "apply": 1,
    "votes": 1,
    "generated_votes": 1,
    "posterior": 1,
    "gate": 1,
    "boosting": 1,
    "trust": 1,
    "overlap": 1,
    "supervisor_card": 2,
    "samples": 1,
    "text_labels": 2,
    "pair_logprob": 1,
    "perplexity": 1,
    "reference": 1,
    "backbone": 1,
    "compressed": 1,
    "report": 13,
}
# Stages without a model that draw random numbers.
_SEEDED = ("apply", "generated_votes", "gate", "trust", "text_labels", "supervisor_card")
# Settings of a training that came later, at values that leave it as it was: they do not enter the
# hash, so stages of before are found.
_ADDED = {
    "ema_decay": 0.0, "interpolation": 1.0, "anchor": 0.0, "nested_dropout": 0.0, "mixup": 0.0,
}  # fmt: skip
# What a spec imports, "package.module:Class" or "package.module:Class:field=value".
_IMPORTED = re.compile(r"([A-Za-z_]\w*(?:\.\w+)+):[A-Za-z_]\w*(?::.*)?", re.DOTALL)
_NOT_CONTENT = set(EXECUTION_FIELDS)  # settings that cannot change a result


def config_slice(cfg: RunConfig, job: Job, n_classes: int) -> dict[str, Any]:
    """Return exactly the settings that can change the job's result."""
    cfg = at_seed(cfg, job.seed)
    common: dict[str, Any] = {"version": VERSIONS[job.stage]}
    if job.stage == "pretrain":
        embedded = EMBEDDED[job.setting("source", FIRST_EMBEDDED)]
        model = {k: v for k, v in to_dict(embedded.config(cfg.task)).items() if k != "seed"}
        return common | {
            "language": embedded.language(cfg.task),
            "model": model,
            **dict(job.settings),
        }
    if job.stage == "tokenizer":
        return common
    answers = {"task": cfg.task.name, "read": cfg.task.read, "scorer": cfg.task.scorer}
    if job.stage == "report":
        specs = {"losses": list(cfg.losses), "methods": list(cfg.methods)}
        bases = {"bases": list(cfg.student_bases), "rounding": cfg.rounding_replicates}
        seen = {"seeds": list(cfg.seeds), "page": to_dict(cfg.page)}
        return common | {**seen, **bases, **specs, **answers}
    common |= {"classes": n_classes, "settings": dict(job.settings)}
    role = job.setting("role")
    if job.stage == "supervisor_card":
        common |= answers
    if job.stage == "transcripts":
        by_critic = make_protocol(job.setting("protocol")).by_critic
        writer = cfg.critic_writer if by_critic else cfg.transcript_writer
        common |= {"writer": writer.content, "seed": job.seed}
    if role is None:
        return common | ({"seed": job.seed} if job.stage in _SEEDED else {})
    train = train_of(cfg, role)
    model = _model_slice(model_of(cfg, role))
    if job.stage == "reference":  # the same for every preference loss
        del model["preference"]
    common |= {"model": model, "device": cfg.device}
    common |= {"answer_tokens": cfg.task.answer_tokens}
    if job.stage in (*TRAINED, "tuned", "compressed"):
        settings = {k: v for k, v in to_dict(train).items() if k not in _NOT_CONTENT}
        settings = {k: v for k, v in settings.items() if _ADDED.get(k) != v}
        settings |= precision_settings(train)
        return common | {"train": settings, "seed": job.seed}
    if job.stage in ("samples", "reference", "pair_logprob", "perplexity"):
        common |= {"seed": job.seed}
    # A transcript writer does not truncate at the max_length of its training.
    return common | ({} if job.stage == "transcripts" else {"max_length": train.max_length})


def _model_slice(model: ModelConfig) -> dict[str, Any]:
    """Return a model's settings without the name of its checkpoint, whose content is an input."""
    values = {k: v for k, v in to_dict(model).items() if k != "preference" or v}
    return values | ({"source": "folder"} if is_checkpoint(Path(model.source)) else {})


def data_digests(data: TaskData) -> dict[str, str]:
    """Return a digest of the inputs (texts, ids, groups) and of the true labels of each split."""
    question = [data.kind, data.class_names, data.prompt, data.words]
    if data.separator != TaskData.separator:
        question.append(data.separator)
    digests = {"question": content_hash(question)}
    for name, split in data.splits.items():
        digests[f"{name}.inputs"] = content_hash(
            [data.kind, split.ids, split.texts, split.pairs, split.groups]
        )
        subgroups = [] if split.subgroups is None else [split.subgroups]
        if split.prompts is not None:
            digests[f"{name}.inputs"] = content_hash([digests[f"{name}.inputs"], split.prompts])
        if split.votes is not None:
            digests[f"{name}.votes"] = content_hash(split.votes.tolist())
        digests[f"{name}.labels"] = content_hash([split.labels.tolist(), split.answers, *subgroups])
    return digests


def data_digest(data: TaskData) -> str:
    """Return one digest over ``data_digests``."""
    return content_hash(data_digests(data))


def data_of_job(
    cfg: RunConfig, job: Job, digests: Mapping[int, Mapping[str, str]]
) -> dict[str, str]:
    """Return ``data_digest`` by seed for the seeds whose data the job may read.

    Args:
        cfg: Configuration of the run.
        job: Job to compute.
        digests: ``data_digests`` by seed.
    """
    seeds = run_seeds(cfg) if job.stage == "report" else [s for s in [job.seed] if s is not None]
    return {str(seed): content_hash(dict(digests[seed])) for seed in seeds}


_SCORED = ("test.inputs", "ood.inputs")
_TRANSFER = ("transfer.inputs", *_SCORED)
_CARD = ("transfer.inputs", "transfer.labels", "test.inputs", "test.labels")
_DATA_INPUTS = {
    "tokenizer": ("weak.inputs", "transfer.inputs"),
    "weak": ("weak.inputs", "weak.labels", *_SCORED),
    "calibration": ("weak.inputs", "weak.labels"),
    "trust": ("weak.inputs", "weak.labels", "transfer.inputs"),
    "overlap": ("transfer.inputs",),
    "supervisor_card": ("question", *_CARD),
    "intermediate": _TRANSFER,
    "student": _TRANSFER,
    "control": _TRANSFER,
    "ceiling": (*_TRANSFER, "transfer.labels"),
    "tuned": ("transfer.inputs",),
    "compressed": ("transfer.inputs",),
    "prior": ("question",),
    "samples": ("question",),
    "features": ("question",),
    "transcripts": ("question",),
    "balance": ("transfer.labels",),
    "generated_votes": ("weak.inputs", "weak.labels"),
    "gate": ("weak.inputs", "weak.labels"),
    "boosting": ("weak.inputs", "weak.labels"),
    "text_labels": ("transfer.inputs",),
    "pair_logprob": ("transfer.inputs",),
    "perplexity": ("transfer.inputs",),
}


def data_inputs(job: Job) -> tuple[str, ...]:
    """Return the keys of ``data_digests`` that the job reads if the task has them."""
    reads = _DATA_INPUTS.get(job.stage, ())
    if job.setting("shots"):
        reads = (*reads, "weak.inputs", "weak.labels")
    if split := job.setting("split"):
        column = (f"{split}.votes",) if job.setting("source") == "VoteColumn" else ()
        return (*reads, f"{split}.inputs", *column)
    if job.setting("conflict_rows"):
        reads = (*reads, "conflict.inputs", "conflict.labels")
    return (*reads, "transfer.labels") if job.gold and job.stage == "student" else reads


def input_digests(
    cfg: RunConfig,
    job: Job,
    results: Mapping[str, str],
    data: Mapping[int, Mapping[str, str]],
    folders: Mapping[str, str],
) -> dict[str, str]:
    """Return the digests of everything the job reads.

    Args:
        cfg: Configuration of the run.
        job: Job to compute.
        results: Digests of the finished jobs it needs, by name.
        data: ``data_digests`` by seed.
        folders: Digests of the checkpoint folders, by role.
    """
    digests = {argument: results[name] for argument, name in job.inputs}
    modules = sorted(set(_imported_modules(config_slice(cfg, job, 0))))
    digests |= {f"code.{name}": module_digest(name) for name in modules}
    if job.setting("source") == "Functions":
        digests["functions"] = source_digest(job.setting("path"))
    if job.stage == "text_labels":
        files = make_method(job.setting("method")).files_read()
        digests |= {f"file.{path}": file_hash(user_path(path, "file")) for path in files}
    if job.stage == "report":
        keys = (*_SCORED, "test.labels", "ood.labels", "transfer.labels")
        return digests | {
            f"{k}/{s}": data[s][k] for s in run_seeds(cfg) for k in keys if k in data[s]
        }
    if job.seed is not None:
        own = data[job.seed]
        digests |= {k: own[k] for k in data_inputs(job) if k in own}
        role = job.setting("role")
        if role is not None:
            # A model without a folder uses the tokenizer of the student, else of the weak model.
            source = next((r for r in (role, "student", "weak") if r in folders), None)
            digests |= {} if source is None else {f"folder.{source}": folders[source]}
    return digests


def _imported_modules(settings: Any) -> Iterator[str]:
    """Yield the user's modules that specs among these settings import; versions guard our own."""
    if isinstance(settings, str):
        found = _IMPORTED.fullmatch(settings.strip())
        if found and not found[1].startswith("w2s_fast."):
            yield found[1]
    elif isinstance(settings, Mapping):
        yield from _imported_modules(list(settings.values()))
    elif isinstance(settings, list | tuple):
        for setting in settings:
            yield from _imported_modules(setting)


class Folders:
    """Digests of checkpoint folders and GGUF files; each is read once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, str]] = {}  # by absolute path

    def digests(self, cfg: RunConfig) -> dict[str, str]:
        """Return a digest of each model that is a folder or a GGUF file, by role."""
        return {role: self._facts(path)[0] for role, path in _folders(cfg).items()}

    def by_source(self, cfg: RunConfig) -> dict[str, str]:
        """Return the same digests by the path in the configuration."""
        return {model_of(cfg, role).source: digest for role, digest in self.digests(cfg).items()}

    def stamps(self, cfg: RunConfig, inputs: Mapping[str, str]) -> dict[str, str]:
        """Return ``tree_stamp`` by path, as it was before the folder was read.

        Args:
            cfg: Configuration of the run.
            inputs: ``input_digests`` of a job; only the folders it names are returned.
        """
        paths = {p for role, p in _folders(cfg).items() if f"folder.{role}" in inputs}
        return {path: self._facts(path)[1] for path in sorted(paths)}

    def _facts(self, path: str) -> tuple[str, str]:
        if path not in self._known:
            stamp = tree_stamp(Path(path))
            self._known[path] = tree_hash(Path(path)), stamp
        return self._known[path]


def _folders(cfg: RunConfig) -> dict[str, str]:
    sources = {role: Path(model_of(cfg, role).source) for role in roles(cfg)}
    return {role: str(path.absolute()) for role, path in sources.items() if is_checkpoint(path)}
