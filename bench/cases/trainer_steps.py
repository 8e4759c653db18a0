"""Training steps of a small Llama in trainers, with and without ours.

B sequences of T tokens, V entries in the vocabulary. All candidates of a case start from the same
weights, with the same batch and the Trainer's AdamW; a step is forward, backward, clipping and
update. Making the reference, trainer and data set is not timed.

``sft``: the loss covers every token. ``dpo``: pairs, the first half of a row is the prompt, which
both completions of a pair follow; ``dpo_smollm2``: the same in the shape of SmolLM2-135M.
``ours`` is examples/trl_dpo.py, ``ours_train`` the forward and loss of ``w2s_fast.training``.
``labels``: two label tokens with weak probabilities at the end of each row, confidence loss.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import w2s_fast
from bench.cases.cross_entropy import AUX, DTYPES
from bench.cases.linear import Unavailable
from bench.harness.environment import ROOT
from w2s_fast.losses.pairwise import PairLoss
from w2s_fast.losses.preference import DPO
from w2s_fast.models.causal_lm import GenerativeModel
from w2s_fast.training import CompletionPairs
from w2s_fast.training.completions import join_rows
from w2s_fast.training.engine import forward

# Case -> candidates; the others are compared with the first.
PROVIDERS = {
    "sft": ("trainer", "liger", "trl", "ours"),
    "dpo": ("full_logits", "trl", "trl_cached", "ours", "ours_train"),
    "dpo_smollm2": ("trl_cached", "ours", "ours_train"),
    "labels": ("full_logits", "label_rows", "ours"),
}
BETA = 0.1
_LABELS = (11, 12)  # label tokens
_SETTINGS: dict[str, Any] = {
    "report_to": [], "save_strategy": "no", "use_cpu": True, "learning_rate": 1e-6,
    "disable_tqdm": True, "bf16": False, "remove_unused_columns": False,
    "activation_checkpointing": False, "gradient_checkpointing": False,
}  # fmt: skip
SIZES = {
    "small": {
        "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "smollm2": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A case, the dtype of all weights, and sizes; ``model`` is a name in ``SIZES``."""

    case: str
    dtype: str
    batch: int
    length: int
    vocabulary: int
    model: str = "small"


@dataclass
class Step:
    """A candidate: a trainer, its batch, and the number of tokens or rows with a loss."""

    trainer: Any
    batch: dict[str, Tensor]
    n_items: int | None = None
    optimizer: Any = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1

    def backward(self) -> float:
        """Run forward and backward; return the loss, and leave the gradients in the weights."""
        items = None if self.n_items is None else torch.tensor(self.n_items)
        loss = self.trainer.training_step(self.trainer.model, dict(self.batch), items)
        return float(loss)

    def __call__(self) -> None:
        self.backward()
        torch.nn.utils.clip_grad_norm_(self.trainer.model.parameters(), 1.0)
        self.optimizer.step()

    def reset(self) -> None:
        """Remove the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def gradient(self) -> Tensor:
        """Return the (V, D) fp32 gradient of the embeddings, which are tied to the head."""
        grad: Tensor = self.trainer.model.get_input_embeddings().weight.grad
        return grad.float()


def make_step(provider: str, shape: Shape) -> Step:
    """Return a candidate of ``PROVIDERS``.

    Raises:
        Unavailable: It is not installed or cannot run here.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _MAKERS[shape.case](provider, shape, folder)


def prepare(provider: str, shape: Shape) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a step and its ``reset``, for ``peak_memory.peaks``."""
    step = make_step(provider, shape)
    return step, step.reset


def _model(shape: Shape, seed: int = 0) -> Any:
    """Return a Llama with tied embeddings, like small models with this vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary, max_position_embeddings=shape.length, initializer_range=0.1,
        tie_word_embeddings=True, use_cache=False, **SIZES[shape.model],
    )  # fmt: skip
    return LlamaForCausalLM(config).to(DTYPES[shape.dtype])


def _tokens(shape: Shape) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocabulary, (shape.batch, shape.length), generator=g)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _trainer(model: Any, folder: str, formula: Callable[..., Tensor] | None = None) -> Any:
    """Return transformers' Trainer with the model's own loss, or with ``formula``."""
    from transformers import Trainer, TrainingArguments

    class Formula(Trainer):
        """A Trainer whose loss is ``formula(model, inputs)``."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            assert formula is not None
            return formula(model, inputs)

    kind = Trainer if formula is None else Formula
    return kind(model, TrainingArguments(folder, **_SETTINGS))


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise Unavailable(f"{package} cannot be imported: {e}") from e


def _tokenizer() -> Any:
    """Return a tokenizer, which TRL requires; the batches are tokens already."""
    from w2s_fast.tasks.datasets.agreement import tokenizer

    return tokenizer()


# Supervised fine-tuning -----------------------------------------------------------------------


def _sft(provider: str, shape: Shape, folder: str) -> Step:
    tokens = _tokens(shape)
    batch = {**tokens, "labels": tokens["input_ids"]}
    n_items = shape.batch * (shape.length - 1)
    model = _model(shape)
    if provider == "trl":
        from datasets import Dataset

        trl = _library("trl", "trl")
        trainer = trl.SFTTrainer(
            model, trl.SFTConfig(folder, **_SETTINGS),
            train_dataset=Dataset.from_list([{"input_ids": [1, 2, 3]}]),
            processing_class=_tokenizer(),
        )  # fmt: skip
        return Step(trainer, batch, n_items)
    if provider == "liger":
        _liger(model)
    if provider == "ours":
        w2s_fast.patch(model)
    return Step(_trainer(model, folder), batch, n_items)


def _liger(model: Any) -> None:
    """Apply Liger's fused loss alone; its other kernels would replace those of every model."""
    module = _library("liger_kernel.transformers", "liger-kernel")
    module.apply_liger_kernel_to_llama(model=model, rope=False, swiglu=False, rms_norm=False)
    ids = torch.ones(1, 4, dtype=torch.int64)
    try:
        model.train()(input_ids=ids, labels=ids)
    except RuntimeError as e:
        raise Unavailable(f"its patch runs Triton kernels, which need a GPU: {e}") from e


# Preferences ----------------------------------------------------------------------------------


def _dpo(provider: str, shape: Shape, folder: str) -> Step:
    """Return a DPO step; rows are the chosen completions, then the rejected ones."""
    batch = _tokens(shape)
    first, second = batch["input_ids"].chunk(2)
    second[:, : shape.length // 2] = first[:, : shape.length // 2]  # both follow one prompt
    batch["completion_mask"] = torch.ones_like(batch["input_ids"])
    batch["completion_mask"][:, : shape.length // 2] = 0
    reference, model = _model(shape, seed=1), _model(shape)
    if provider != "trl":
        with torch.no_grad():
            rows = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(shape.batch)]
            logps = torch.cat([_completion_logps(reference, row) for row in rows])
        batch["ref_chosen_logps"], batch["ref_rejected_logps"] = logps.chunk(2)
    if provider == "full_logits":
        return Step(_trainer(model, folder, _dpo_formula), batch)
    if provider == "ours_train":
        return Step(_PairTrainer(_trainer(model, folder), batch), {})
    if provider == "ours":
        batch["q"] = batch["weight"] = torch.ones(shape.batch // 2)
        kind = _example("trl_dpo").SoftDPOTrainer
        return Step(_dpo_trainer(kind, w2s_fast.patch(model), folder), batch)
    kind = _library("trl", "trl").DPOTrainer
    return Step(_dpo_trainer(kind, model, folder, reference if provider == "trl" else None), batch)


class _PairTrainer:
    """Forward and loss of ``w2s_fast.training`` for pairs, with the Trainer's model and AdamW."""

    def __init__(self, trainer: Any, batch: dict[str, Tensor]) -> None:
        self.model, self.create_optimizer = trainer.model, trainer.create_optimizer
        self._generative = GenerativeModel(trainer.model.train())
        pairs = _as_pairs(batch)
        self._batch = pairs.batch(np.arange(len(pairs)))
        self._weak = torch.tensor([[1.0, 0.0]] * len(pairs))

    def training_step(self, model: Any, inputs: Any, n_items: Any) -> Tensor:
        """Run forward and backward; return the mean loss."""
        loss = PairLoss(preference=DPO(beta=BETA))

        def mean(answers: Tensor) -> Tensor:
            out = loss(answers, self._weak)
            return out.loss_sum / out.count

        value: Tensor = forward(self._generative, self._batch, mean)
        value.backward()
        return value.detach()


def _as_pairs(batch: dict[str, Tensor]) -> CompletionPairs:
    """Return the pairs of a DPO batch, whose rows are chosen completions, then rejected ones."""
    order = torch.arange(len(batch["input_ids"])).view(2, -1).t().flatten()
    rows, mask = batch["input_ids"][order], batch["completion_mask"][order].bool()
    inputs = [row[:-1].tolist() for row in rows]
    labels = [row[own].tolist() for row, own in zip(rows, mask, strict=True)]
    pairs = CompletionPairs(
        completions=join_rows(_tokenizer(), inputs, labels),
        truncated=np.zeros(len(rows) // 2, dtype=bool),
    )
    reference = [batch["ref_chosen_logps"], batch["ref_rejected_logps"]]
    return pairs.with_reference(torch.stack(reference, 1).float().numpy())


def _dpo_trainer(kind: Any, model: Any, folder: str, reference: Any = None) -> Any:
    """Return a DPO trainer; without a reference model, the batch has its log-probabilities."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    config = _library("trl", "trl").DPOConfig(
        folder, **_SETTINGS, beta=BETA, precompute_ref_log_probs=reference is None
    )
    rows = [{"prompt": "the key", "chosen": " is", "rejected": " are", "q": 1.0, "weight": 1.0}]
    extra = {"data_collator": _example("trl_dpo").SoftPairs(pad_token_id=0)}
    return kind(
        model, reference, args=config, train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(), **(extra if kind.__name__ == "SoftDPOTrainer" else {}),
    )  # fmt: skip


def _example(name: str) -> Any:
    """Import a module of ``examples``, so that the documented code is what is timed."""
    _library("trl", "trl")
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "examples"))


def _completion_logps(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return the (B,) log-probabilities of the completions, from full logits."""
    out = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    logp = out.logits[:, :-1].float().log_softmax(-1)
    logp = logp.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    return (logp * inputs["completion_mask"][:, 1:]).sum(1)


def _dpo_formula(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    first, second = _completion_logps(model, inputs).chunk(2)
    gap = first - second - (inputs["ref_chosen_logps"] - inputs["ref_rejected_logps"])
    return -F.logsigmoid(BETA * gap).mean()


# Classification with label tokens -------------------------------------------------------------


def _labels(provider: str, shape: Shape, folder: str) -> Step:
    batch, model = _tokens(shape), _model(shape)
    g = torch.Generator().manual_seed(1)
    p = torch.rand(shape.batch, generator=g)
    probs, ids = torch.stack([1 - p, p], 1), torch.tensor(_LABELS)
    if provider == "ours":
        w2s_fast.patch(model, loss=f"logconf:aux_coef={AUX},warmup_frac=0")
        size = (shape.batch, shape.length)
        batch["labels"] = torch.full(size, -100)
        batch["labels"][:, -1] = ids[0]  # marks the position; the weak columns hold the target
        batch["weak_ids"] = torch.full((*size, 2), -1)
        batch["weak_ids"][:, -1] = ids
        batch["weak_probs"] = torch.zeros(*size, 2)
        batch["weak_probs"][:, -1] = probs
        return Step(_trainer(model, folder), batch, shape.batch)
    batch["target"] = torch.zeros(shape.batch, shape.vocabulary)
    batch["target"][:, ids] = probs
    formula = _all_rows if provider == "full_logits" else _label_rows
    return Step(_trainer(model, folder, formula), batch)


def _all_rows(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    out = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    return _confidence(out.logits.float()[:, -2], inputs["target"])


def _label_rows(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return the loss with the head applied to one hidden state per row."""
    out = model.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    return _confidence(model.lm_head(out.last_hidden_state[:, -2]).float(), inputs["target"])


def _confidence(logits: Tensor, weak: Tensor) -> Tensor:
    """Return the confidence loss; the student's own class is that of its largest logit."""
    own = F.one_hot(logits.detach().argmax(1), logits.shape[1])
    return F.cross_entropy(logits, (1 - AUX) * weak + AUX * own)


_MAKERS = {"sft": _sft, "dpo": _dpo, "dpo_smollm2": _dpo, "labels": _labels}
