"""Configuration of a training: ``TrainConfig`` holds every hyper-parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from w2s_fast.errors import W2SError, nearest
from w2s_fast.paths import PathText, expand_paths

SCHEDULES = ("cosine", "linear", "constant")
THRESHOLD_SCOPES = ("exact", "window", "ema", "microbatch")
OFFLOAD = ("none", "cpu", "nvme")
# Fields that do not change what is trained: a checkpoint resumes with other values of them.
EXECUTION_FIELDS = (
    "checkpoint_every", "zero_stage", "offload_optimizer", "offload_params", "nvme_path",
    "deepspeed_config", "timeout_s",
)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Hyper-parameters of one training.

    Attributes:
        epochs: passes over the data, each in its own order.
        batch_size: rows of an optimizer step.
        micro_batch_size: rows of one forward and backward; None: the whole batch at once. It
            bounds memory and, with ``threshold_scope="exact"``, does not change the result.
        lr: peak learning rate of AdamW.
        schedule: ``cosine`` or ``linear`` to 0 over the training, or ``constant``.
        warmup_frac: fraction of the steps over which the learning rate rises linearly.
        decay_frac: fraction of the steps, the last ones, over which a ``constant`` learning rate
            falls linearly to 0. Large constant steps make the weights oscillate, which under SGD
            helps to learn weak features beside strong ones (arXiv 2310.17074); the decay ends the
            oscillation.
        average_frac: fraction of the steps, the last ones, whose weights are averaged; the training
            ends with their mean. 0: it ends with the weights of the last step.
        ema_decay: decay d of a moving average of the weights, m <- d m + (1 - d) w after every step
            (it begins with the first); the training ends with it. 0: none.
        interpolation: alpha of WiSE-FT (arXiv 2109.01903): the training ends with
            (1 - alpha) initial + alpha trained weights, averaged or not; 1: the trained ones. Of
            LoRA matrices B alone is interpolated, which interpolates their product with A.
        anchor: strength of a penalty on the drift of a classifier's states from those of its
            initial weights, at the training rows; 0: none. See ``training.anchor``.
        nested_dropout: sigma of nested dropout (arXiv 2206.13140): in every step the head reads the
            first k entries of its input alone, P(k) ~ exp(-(k / sigma)^2); see
            ``training.nested_dropout``. 0: all entries.
        mixup: alpha of mixup at the head (arXiv 1710.09412, 1806.05236): rows are mixed in pairs
            with shares from Beta(alpha, alpha), and their labels with them; 0: none. Micro-batches
            have even numbers of rows.
        weight_decay: decoupled weight decay of parameters with two or more dimensions.
        beta1, beta2, eps: coefficients of AdamW.
        clip_norm: maximum gradient norm of a step; None: no clipping.
        threshold_scope: rows that a batch threshold of the loss is computed from when a step has
            several micro-batches. ``exact``: all rows of the step, by a first pass without
            gradients. ``window``: the last ``batch_size`` rows. ``ema``: moving average of the
            micro-batches' thresholds over about ``batch_size`` rows. ``microbatch``: the rows of
            each micro-batch. Without micro-batches all four are the same.
        dropout: train with the model's dropout; off by default, as in openai/weak-to-strong.
        gradient_checkpointing: recompute activations in the backward pass.
        max_length: tokens to which an example is truncated.
        checkpoint_every: optimizer steps between checkpoints; 0: none.
        zero_stage: DeepSpeed ZeRO stage: 0 keeps the whole model on every device (plain torch), 1
            shards optimizer state, 2 also gradients, 3 also weights. It does not change what is
            trained.
        offload_optimizer: where ZeRO keeps optimizer state: ``none`` (the device), ``cpu`` or
            ``nvme``.
        offload_params: where ZeRO-3 keeps weights that are not in use: the same names.
        nvme_path: folder on a local disk, for ``nvme``.
        deepspeed_config: a DeepSpeed JSON file with settings that have no field here, or null.
        timeout_s: seconds of silence after which a process counts as lost. A run uses the larger
            value of its two trainings.
    """

    epochs: int = 2
    batch_size: int = 32
    micro_batch_size: int | None = None
    lr: float = 5e-4
    schedule: str = "cosine"
    warmup_frac: float = 0.0
    decay_frac: float = 0.0
    average_frac: float = 0.0
    ema_decay: float = 0.0
    interpolation: float = 1.0
    anchor: float = 0.0
    nested_dropout: float = 0.0
    mixup: float = 0.0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = None
    threshold_scope: str = "exact"
    dropout: bool = False
    gradient_checkpointing: bool = False
    max_length: int = 512
    checkpoint_every: int = 0
    zero_stage: int = 0
    offload_optimizer: str = "none"
    offload_params: str = "none"
    nvme_path: PathText | None = None
    deepspeed_config: PathText | None = None
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        expand_paths(self)
        for name in ("epochs", "batch_size", "max_length"):
            self._check_least(name, 1)
        for name in (
            "lr", "weight_decay", "eps", "checkpoint_every", "anchor", "nested_dropout", "mixup",
        ):  # fmt: skip
            self._check_least(name, 0)
        if self.micro_batch_size is not None:
            self._check_least("micro_batch_size", 1)
        for name in ("warmup_frac", "decay_frac", "average_frac", "ema_decay", "beta1", "beta2"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise W2SError(f"{name} is {value}; expected a number in [0, 1)")
        if not 0.0 < self.interpolation <= 1.0:
            raise W2SError(f"interpolation is {self.interpolation}; expected a number in (0, 1]")
        if self.average_frac and self.ema_decay:
            raise W2SError(
                f"average_frac is {self.average_frac} and ema_decay {self.ema_decay}; a training "
                "ends with one mean of its weights: set one of them to 0"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise W2SError(f"clip_norm is {self.clip_norm}; expected a number above 0, or null")
        for name, names in (
            ("schedule", SCHEDULES),
            ("threshold_scope", THRESHOLD_SCOPES),
            ("offload_optimizer", OFFLOAD),
            ("offload_params", OFFLOAD),
        ):
            value = getattr(self, name)
            if value not in names:
                hint = nearest(value, names)
                raise W2SError(f"{name} is {value!r}; expected one of {', '.join(names)}{hint}")
        self._check_decay()
        self._check_sharding()

    def _check_decay(self) -> None:
        if self.decay_frac and self.schedule != "constant":
            raise W2SError(
                f"decay_frac is {self.decay_frac} with schedule={self.schedule!r}, which decays "
                "over all steps; set schedule=constant or decay_frac=0"
            )
        if self.warmup_frac + self.decay_frac > 1.0:
            raise W2SError(
                f"warmup_frac is {self.warmup_frac} and decay_frac {self.decay_frac}; expected a "
                "sum of at most 1"
            )

    def _check_sharding(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise W2SError(f"zero_stage is {self.zero_stage}; expected a ZeRO stage, 0 to 3")
        if not self.timeout_s > 0:
            raise W2SError(f"timeout_s is {self.timeout_s}; expected seconds, more than 0")
        for name, least in (("offload_optimizer", 1), ("offload_params", 3)):
            if getattr(self, name) != "none" and self.zero_stage < least:
                raise W2SError(
                    f"{name} is {getattr(self, name)!r} at zero_stage={self.zero_stage}; it needs "
                    f"ZeRO stage {least} or more"
                )
        if "nvme" in (self.offload_optimizer, self.offload_params) and (
            self.nvme_path is None or self.zero_stage < 3
        ):
            raise W2SError(
                f"offload to nvme at zero_stage={self.zero_stage}, nvme_path={self.nvme_path}; it "
                "needs ZeRO stage 3 and the folder of a local disk"
            )
        if self.deepspeed_config is not None and not self.zero_stage:
            raise W2SError(
                f"deepspeed_config is {self.deepspeed_config!r} at zero_stage=0, which is "
                "plain torch"
            )

    def unsharded(self) -> TrainConfig:
        """Return the same training on one device; sharding does not change what is trained."""
        return replace(
            self,
            zero_stage=0,
            offload_optimizer="none",
            offload_params="none",
            nvme_path=None,
            deepspeed_config=None,
        )

    def batch_shape(self, n_processes: int) -> tuple[int, int]:
        """Return (rows of a micro-batch, micro-batches of a step) of each process.

        Raises:
            W2SError: if the batch does not split evenly over the processes.
        """
        if self.batch_size % n_processes:
            low = self.batch_size // n_processes * n_processes
            fits = f"{low} or {low + n_processes}" if low else f"{n_processes}"
            raise W2SError(
                f"batch_size is {self.batch_size}, which does not split over {n_processes} "
                f"processes; use {fits}, or another number of processes"
            )
        rows = self.batch_size // n_processes
        micro = min(self.micro_batch_size or rows, rows)
        if self.mixup and (micro % 2 or rows % 2):
            raise W2SError(
                f"mixup is {self.mixup} with {micro} rows in a micro-batch and {rows} in a step of "
                "each process; expected even numbers, because rows are mixed in pairs: change "
                "micro_batch_size, batch_size or the number of processes"
            )
        return micro, -(-rows // micro)

    def steps(self, n_rows: int) -> int:
        """Return the optimizer steps over ``n_rows`` rows; the last may have fewer rows."""
        return math.ceil(n_rows * self.epochs / self.batch_size)

    def lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate of ``step`` (from 0) out of ``steps``."""
        warmup_steps = round(self.warmup_frac * steps)
        if step < warmup_steps:
            return self.lr * (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(1, steps - warmup_steps)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "linear":
            return self.lr * (1 - done)
        decay_steps = round(self.decay_frac * steps)
        return self.lr * min(1.0, (steps - step) / max(1, decay_steps))

    def first_averaged(self, steps: int) -> int:
        """Return the number of steps before those whose weights are averaged."""
        if self.ema_decay:
            return 0
        averaged = round(self.average_frac * steps)
        # Interpolation needs the last weights in the precision of the optimizer.
        return steps - (averaged if self.interpolation == 1.0 else max(averaged, 1))

    def share_in_mean(self, n: int) -> float:
        """Return the share that the ``n``-th averaged weights, from 1, take in the mean."""
        return 1 - self.ema_decay if self.ema_decay and n > 1 else 1 / n

    def _check_least(self, name: str, low: int) -> None:
        value = getattr(self, name)
        if not (value >= low and math.isfinite(value)):
            raise W2SError(f"{name} is {value}; expected a number of at least {low}")
