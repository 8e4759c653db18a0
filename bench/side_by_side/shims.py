"""What is changed in another code base, from outside, so that it runs on a CPU and offline.

A shim is applied in the worker process after the code base is imported and before its training
function is called; no file of a checkout is edited. Each says why it is there, and
docs/side_by_side.md lists them. This module imports torch and the code bases only inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shim:
    """One change.

    Attributes:
        what: The changed name, and what it is changed to.
        why: What would fail, or differ, without it.
        apply: Makes the change.
    """

    what: str
    why: str
    apply: Callable[[], None]


def _openai_device() -> None:
    from weak_to_strong.model import TransformerWithHead

    plain = TransformerWithHead.to
    TransformerWithHead.to = lambda model, device: plain(model, "cpu")


def _openai_backbone() -> None:
    from transformers import LlamaForCausalLM

    LlamaForCausalLM.transformer = property(lambda model: model.model)


def _openai_saving() -> None:
    from weak_to_strong.model import TransformerWithHead

    plain = TransformerWithHead.save_pretrained
    TransformerWithHead.save_pretrained = lambda model, folder: plain(
        model, folder, safe_serialization=False
    )


def _eleuther_device() -> None:
    import w2s.model

    class OnCpu(w2s.model.AutoModelForSequenceClassification):
        @classmethod
        def from_pretrained(cls, name: str, **options: Any) -> Any:
            plain = super().from_pretrained
            return plain(name, **{**options, "device_map": {"": "cpu"}})

    w2s.model.AutoModelForSequenceClassification = OnCpu


def _eleuther_gpu_memory() -> None:
    import w2s.sft

    w2s.sft.get_gpu_mem_used = lambda: 0.0


def _eleuther_order() -> None:
    from torch.utils.data import SequentialSampler
    from w2s.sft import CustomLossTrainer

    CustomLossTrainer._get_train_sampler = lambda trainer: SequentialSampler(trainer.train_dataset)


SHIMS: dict[str, tuple[Shim, ...]] = {
    "openai": (
        Shim(
            '`TransformerWithHead.to("cuda")` moves to the CPU',
            "the device is written into `train_and_save_model`",
            _openai_device,
        ),
        Shim(
            "`LlamaForCausalLM` has an attribute `transformer`, its `model`",
            "the head takes the backbone by the name that GPT-2 and Qwen 1 have",
            _openai_backbone,
        ),
        Shim(
            "`TransformerWithHead.save_pretrained` writes `pytorch_model.bin`",
            "the model holds every weight under two names, which safetensors does not store; the "
            "code base itself reads `pytorch_model.bin`",
            _openai_saving,
        ),
    ),
    "eleuther": (
        Shim(
            '`device_map={"": "cuda"}` of `init_model` becomes `"cpu"`',
            "the device is written into `init_model`",
            _eleuther_device,
        ),
        Shim(
            "`w2s.sft.get_gpu_mem_used` returns 0",
            "it asks the NVIDIA driver; the number is only printed",
            _eleuther_gpu_memory,
        ),
        Shim(
            "the Trainer reads rows in the order of the file",
            "it would shuffle them; here all code bases get the same batches",
            _eleuther_order,
        ),
    ),
    "ours": (),
}
