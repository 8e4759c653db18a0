"""Check, before anything is computed, that settings, task, models and libraries fit together.

Each check stands for an error that a stage would raise after others have run, perhaps for days.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

from w2s_fast.config import RunConfig, model_of, naming_block, roles, train_of
from w2s_fast.distributed.world import get_world
from w2s_fast.errors import W2SError
from w2s_fast.methods import Node, all_nodes, make_steps
from w2s_fast.methods._merge import members_of
from w2s_fast.models import ModelConfig
from w2s_fast.models.backbone import architecture, check_folder
from w2s_fast.models.build import check_model_kind
from w2s_fast.pipeline.check_models import LANGUAGE_MODEL_STAGES, check_models
from w2s_fast.pipeline.check_policies import check_policy, check_policy_methods, check_weak_policy
from w2s_fast.pipeline.check_trainings import check_trainings
from w2s_fast.pipeline.stages.build_model import device
from w2s_fast.pipeline.students import make_plan, no_conflict_of, students
from w2s_fast.pipeline.task_kinds import task_kind
from w2s_fast.tasks import EMBEDDED
from w2s_fast.training import TrainConfig
from w2s_fast.training.deepspeed.config import deepspeed_config
from w2s_fast.training.deepspeed.setup import check_offload, load_deepspeed


def check_fit(cfg: RunConfig, kind: str, n_classes: int) -> None:
    """Check a run against its task and this machine.

    Args:
        cfg: Configuration of the run, which ``config.validate`` accepts.
        kind: Kind of its task.
        n_classes: Number of classes of its task.

    Raises:
        W2SError: Something does not fit; the message names the setting.
    """
    task_kind(kind)
    check_methods(cfg, kind, n_classes)
    check_diagnostics(cfg, kind)
    for role in roles(cfg):
        block = "intermediate_models" if "/" in role else role
        with naming_block(block, ": " if "/" in role else "."):
            _check_model(model_of(cfg, role), train_of(cfg, role), kind, n_classes)
        _check_loss_scale(cfg, role)
        if kind == "generation":
            _check_room(cfg, role)
    check_weak_policy(cfg, [student.loss for student in students(cfg)])
    for block, role in (("weak_train", "weak"), ("student_train", "student")):
        with naming_block(block):
            _check_training(train_of(cfg, role), model_of(cfg, role).dtype, device(cfg) == "cuda")
    nodes = list(all_nodes(node for student in students(cfg) for node in student.nodes(cfg)))
    if "overlap" in cfg.diagnostics:
        nodes.append(make_plan(cfg, "xent").features())
    _check_language_models(cfg, nodes, n_classes)
    _check_layers(cfg, nodes)
    for node in nodes:
        if node.stage == "transcripts":
            _check_writer(cfg, node)
    _check_anchor(cfg, nodes, kind)
    if any("contrast" in dict(node.settings) for node in nodes) and cfg.weak_train.zero_stage == 3:
        raise W2SError(
            "weak_train.zero_stage=3: method 'cong' runs the weak model beside itself before its "
            "training, and no process may hold both in parts; expected a ZeRO stage of 0 to 2"
        )
    check_policy_methods(cfg, nodes)
    check_trainings(cfg, kind, nodes)
    _check_soups(cfg, nodes)
    _check_mixup(cfg, kind, nodes)
    _check_prefixes(cfg, nodes)
    _check_low_rank(cfg, nodes)
    if any("conflict_rows" in dict(node.settings) for node in nodes) and not cfg.task.conflict_path:
        raise W2SError(
            "method 'implicit_conflict' trains on pairs of a conflicting objective; set "
            "task.conflict_path to a file of them"
        )
    no_conflict_of(cfg)
    check_models(cfg, kind)


def check_methods(cfg: RunConfig, kind: str, n_classes: int) -> None:
    """Check that every method supports the task.

    Raises:
        W2SError: A method does not.
    """
    for student in students(cfg):
        for step in make_steps(student.method):
            if kind not in step.kinds:
                raise W2SError(
                    f"method {student.method!r} works on tasks of kind {', '.join(step.kinds)}; "
                    f"{cfg.task.name!r} is of kind {kind!r}"
                )
            step.check_task(n_classes, cfg.task.n_transfer)


def check_diagnostics(cfg: RunConfig, kind: str) -> None:
    """Check that the task has what calibration and diagnostics need.

    Raises:
        W2SError: It is a generation task, or its weak split has fewer rows than folds.
    """
    calibrates = cfg.weak_calibration != "none"
    if kind == "generation" and (calibrates or cfg.diagnostics):
        setting = (
            f"weak_calibration={cfg.weak_calibration!r}"
            if calibrates
            else f"diagnostics={list(cfg.diagnostics)}"
        )
        raise W2SError(
            f"{setting} needs class probabilities, and {cfg.task.name!r} is a generation task, "
            "whose labels are texts; leave it out"
        )
    if (calibrates or "fit" in cfg.diagnostics) and cfg.calibration_folds > cfg.task.n_weak:
        raise W2SError(
            f"calibration_folds={cfg.calibration_folds} with task.n_weak={cfg.task.n_weak}; "
            "expected no more folds than rows"
        )


def _check_model(model: ModelConfig, train: TrainConfig, kind: str, n_classes: int) -> None:
    check_model_kind(model, n_classes, kind)
    check_policy(model, kind)
    check_folder(model)
    if model.lora_rank and importlib.util.find_spec("peft") is None:
        raise W2SError(f"lora_rank is {model.lora_rank}, which needs peft: pip install peft")
    if model.source == "bow" and train.gradient_checkpointing:
        raise W2SError(
            "source is 'bow', which has no gradient checkpointing; set gradient_checkpointing=false"
        )


def _check_anchor(cfg: RunConfig, nodes: list[Node], kind: str) -> None:
    """Check that the models whose states are anchored have states and a head of classes."""
    by_role = {role: train_of(cfg, role).anchor for role in roles(cfg)}
    methods = [strength for n in nodes if (strength := dict(n.settings).get("anchor"))]
    if methods:
        by_role["student"] = methods[0]
    for role, strength in by_role.items():
        model = model_of(cfg, role)
        unfit = "source='bow'" if model.source == "bow" else f"preference={model.preference!r}"
        if kind == "generation":
            unfit = f"task {cfg.task.name!r} of kind 'generation'"
        elif model.source != "bow" and not model.preference:
            continue
        if strength:
            raise W2SError(
                f"anchor={strength:g} for the {role} model with {unfit}; expected a transformer "
                "with a classification head: set anchor=0, or drop the method"
            )


def _check_loss_scale(cfg: RunConfig, role: str) -> None:
    model, train = model_of(cfg, role), train_of(cfg, role)
    if model.dtype == "fp16" and model.source != "bow" and not train.zero_stage:
        block = "weak_train" if role == "weak" else "student_train"
        raise W2SError(
            f"{role}.dtype is 'fp16' at {block}.zero_stage=0, which has no loss scaling; expected "
            f"{block}.zero_stage=1 or more, or {role}.dtype=bf16"
        )


def _check_training(train: TrainConfig, dtype: str, cuda: bool) -> None:
    size = get_world().size
    train.batch_shape(size)
    if train.zero_stage:
        load_deepspeed()
        deepspeed_config(train, dtype, size, cuda)  # reads the user's file
    check_offload(train)


def _check_room(cfg: RunConfig, role: str) -> None:
    """Check that a prompt has room beside the completions of a generation task."""
    length = min(train_of(cfg, role).max_length, _positions(cfg, role))
    if cfg.task.answer_tokens >= length:
        raise W2SError(
            f"task.answer_tokens is {cfg.task.answer_tokens}, which leaves no room for a prompt in "
            f"the {length} tokens of the {role} model (its max_length and positions); use fewer"
        )


def _check_language_models(cfg: RunConfig, nodes: list[Node], n_classes: int) -> None:
    """Check that student and critic are language models where a stage needs their heads."""
    needed: dict[str, str] = {}  # stage by role; where an endpoint writes, the role is None
    for node in nodes:
        role = dict(node.settings).get("role")
        if node.stage not in LANGUAGE_MODEL_STAGES or role is None:
            continue
        if role not in needed or node.stage == "transcripts":  # which needs more of a model
            needed[role] = node.stage
    for role, stage in needed.items():
        # A frozen backbone is still a language model.
        model = replace(model_of(cfg, role), freeze="none")
        if model.source == "bow" or (stage == "transcripts" and model.source == "scratch"):
            writer = "critic_writer" if role == "weak" else "transcript_writer"
            raise W2SError(
                f"a method needs the {role}'s language model (stage {stage!r}), and "
                f"{role}.source={model.source!r} is none; give the folder of a checkpoint"
                + (f", or {writer}.kind=endpoint" if stage == "transcripts" else "")
            )
        with naming_block(role):
            check_model_kind(model, n_classes, "generation")


def _check_layers(cfg: RunConfig, nodes: list[Node]) -> None:
    """Check that the student has the hidden states that methods read."""
    layers = [dict(node.settings)["layer"] for node in nodes if node.stage == "features"]
    if layers and cfg.student.source == "bow":
        raise W2SError(
            "a method needs hidden states of the student, or diagnostics: [overlap] does, and "
            "student.source='bow' has none; use the folder of a checkpoint or 'scratch'"
        )
    numbers = [int(layer) for layer in layers if layer.isdecimal()]
    if numbers and max(numbers) > (count := _n_layers(cfg)):
        raise W2SError(
            f"a method reads layer={max(numbers)} of the student; expected 0 to {count}, 'half' or "
            f"'last' for a model of {count} layers"
        )


def _check_soups(cfg: RunConfig, nodes: list[Node]) -> None:
    """Check that the members of a soup start from the same weights."""
    random = cfg.student.source == "scratch" or not cfg.student.pretrained
    for node in nodes if random else ():
        members = [dict(n.settings).get("member", 0) for n in members_of(node)]
        if len(set(members)) > 1:
            raise W2SError(
                f"a method averages students of {len(set(members))} seeds, which start from other "
                f"random weights at student.source={cfg.student.source!r}, student.pretrained="
                f"{cfg.student.pretrained}; expected a checkpoint, or members=1 with several "
                "losses or lr_factors"
            )


def _check_mixup(cfg: RunConfig, kind: str, nodes: list[Node]) -> None:
    """Check that models with mixup learn class probabilities, in steps of whole pairs."""
    mixing = {role: train_of(cfg, role).mixup for role in roles(cfg)}
    for node in nodes:
        settings = dict(node.settings)
        if alpha := settings.get("mixup"):
            mixing[settings["role"]] = alpha
        if "step_targets" in settings and (alpha or train_of(cfg, settings["role"]).mixup):
            raise W2SError(
                f"a method makes its targets in steps ({settings['step_targets']}), of the rows as "
                "they are, and mixup mixes them; expected one of the two"
            )
        if "conflict" in settings and (alpha or train_of(cfg, settings["role"]).mixup):
            raise W2SError(
                "method 'explicit_conflict' learns against true classes, which mixup has none of; "
                "expected one of the two"
            )
    for role, alpha in mixing.items():
        preference = model_of(cfg, role).preference
        if alpha and (kind == "generation" or preference):
            raise W2SError(
                f"mixup={alpha} mixes class probabilities, and the {role} model learns texts (kind "
                f"{kind!r}, preference={preference!r}); expected mixup=0"
            )
        replace(train_of(cfg, role), mixup=alpha).batch_shape(get_world().size)


def _check_low_rank(cfg: RunConfig, nodes: list[Node]) -> None:
    """Check that the student has layers of its own to make smaller."""
    student = cfg.student
    if not any("low_rank" in dict(node.settings) for node in nodes):
        return
    if student.lora_rank or student.source == "bow" or student.preference:
        raise W2SError(
            "method 'low_rank' trains products in the place of the student's linear layers; "
            f"expected a classifier or reward model without LoRA, and student.source="
            f"{student.source!r}, lora_rank={student.lora_rank}, preference={student.preference!r}"
        )


def _check_prefixes(cfg: RunConfig, nodes: list[Node]) -> None:
    """Check that thresholds of several prefixes can be kept."""
    if cfg.student_train.threshold_scope == "ema" and any(
        "prefixes" in dict(node.settings) for node in nodes
    ):
        raise W2SError(
            "method 'matryoshka' has a threshold for each prefix, and threshold_scope='ema' keeps "
            "one; expected student_train.threshold_scope=exact, window or microbatch"
        )


def _check_writer(cfg: RunConfig, node: Node) -> None:
    role, by_critic = dict(node.settings)["role"], "before" in dict(node.needs)
    writer = cfg.critic_writer if by_critic else cfg.transcript_writer
    if role is None:
        writer.key()
        return
    room, positions = writer.max_tokens, _positions(cfg, role)
    if room >= positions:
        raise W2SError(
            f"{writer.setting}.max_tokens={room}: the {role}'s language model reads {positions} "
            "tokens, prompt and answer together; use at most half of that"
        )


def _positions(cfg: RunConfig, role: str) -> int:
    """Return the tokens that a model can read; 2**31 if there is no limit."""
    model = model_of(cfg, role)
    if model.source in EMBEDDED:
        return EMBEDDED[model.source].positions()
    config: Any = architecture(model)
    return getattr(config, "max_position_embeddings", None) or 2**31


def _n_layers(cfg: RunConfig) -> int:
    if cfg.student.source in EMBEDDED:
        return EMBEDDED[cfg.student.source].config(cfg.task).layers
    config: Any = architecture(cfg.student)
    return cfg.student.layers if config is None else int(config.num_hidden_layers)
