"""Where in training a patched model is, and whether the trainer asks it for its loss at all."""

from __future__ import annotations

from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.schedule import one_number, whole_number


def set_progress(model: Any, frac: float, step: int | None = None) -> None:
    """Say where in training a patched model is; losses with a schedule need it before every step.

    Args:
        model: a patched model, or whatever holds one.
        frac: optimizer step over the number of steps, in [0, 1].
        step: optimizer step, for schedules that count steps.

    Raises:
        W2SError: if nothing is patched, ``frac`` is out of range, or the loss counts steps and
            ``step`` is None.
    """
    frac = one_number("frac", frac)
    step = None if step is None else whole_number("step", step)
    for lm in patched(model):
        lm._w2s_fast.tell(frac, step)


def progress_callback(model: Any) -> Any:
    """A transformers ``TrainerCallback`` that keeps a patched model and its trainer together.

    It calls ``set_progress`` at every optimizer step, and forgets the progress at the end.

    Raises:
        W2SError: in training, if the trainer has a loss of its own, which never asks the model for
            the patched one (TRL's do), or smooths labels itself.
    """
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        """Where the Trainer is, told to the patched model."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if args.label_smoothing_factor:
                raise W2SError(
                    f"label_smoothing_factor={args.label_smoothing_factor} needs logits; leave it "
                    "at 0 and patch(model, loss='smoothing:epsilon=...')"
                )

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            set_progress(model, state.global_step / max(state.max_steps, 1), state.global_step)
            for lm in patched(model):
                lm._w2s_fast.asked = False

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not any(lm._w2s_fast.asked for lm in patched(model)):
                raise W2SError(
                    "the trainer computed a loss of its own in this step, not that of the patched "
                    "model; TRL's do: override compute_loss, see docs/trainers.md"
                )

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for lm in patched(model):
                lm._w2s_fast.told = False

    return Progress()


def patched(model: Any) -> list[Any]:
    """The patched models that a model is or holds."""
    found = [m for m in model.modules() if "_w2s_fast" in m.__dict__ and hasattr(m, "config")]
    if not found:
        raise W2SError(f"{type(model).__name__} is not patched; call w2s_fast.patch(model) first")
    return found
