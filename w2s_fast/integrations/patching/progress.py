"""Progress of training for losses with a schedule, and the callback that reports it."""

from __future__ import annotations

from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.schedule import one_number, whole_number
from w2s_fast.ops.arguments import checked


@checked
def set_progress(model: Any, step_frac: Any, step: Any = None) -> None:
    """Set where in training a patched model is; losses with a schedule need it before every step.

    Args:
        model: a patched model, or a module that contains one.
        step_frac: optimizer step / number of steps, in [0, 1]; a number, or a column of it.
        step: optimizer step, for schedules that count steps; an integer, or such a column.

    Raises:
        W2SError: if nothing is patched, ``step_frac`` is out of range, or the loss counts steps and
            ``step`` is None.
    """
    step_frac = one_number("step_frac", step_frac)
    step = None if step is None else whole_number("step", step)
    for lm in patched_models(model):
        lm._w2s_fast.set_progress(step_frac, step)


def progress_callback(model: Any) -> Any:
    """Return a transformers ``TrainerCallback`` that calls ``set_progress`` before every step.

    At the end of training the progress is unset again.

    Raises:
        W2SError: in training, if the trainer computes a loss of its own and so never uses the
            patched one (TRL's trainers do), or smooths labels itself.
    """
    from transformers import TrainerCallback

    class ProgressCallback(TrainerCallback):
        """Report the Trainer's step to the patched model."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if args.label_smoothing_factor:
                raise W2SError(
                    f"label_smoothing_factor={args.label_smoothing_factor} needs logits; leave it "
                    "at 0 and patch(model, loss='smoothing:epsilon=...')"
                )

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            set_progress(model, state.global_step / max(state.max_steps, 1), state.global_step)
            for lm in patched_models(model):
                lm._w2s_fast.loss_computed = False

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not any(lm._w2s_fast.loss_computed for lm in patched_models(model)):
                raise W2SError(
                    "the trainer computed a loss of its own in this step, not that of the patched "
                    "model; TRL's do: override compute_loss, see docs/trainers.md"
                )

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for lm in patched_models(model):
                lm._w2s_fast.progress_known = False

    return ProgressCallback()


def patched_models(model: Any) -> list[Any]:
    """Return the patched models among a model and its submodules.

    Raises:
        W2SError: if there are none.
    """
    patched = [m for m in model.modules() if "_w2s_fast" in m.__dict__ and hasattr(m, "config")]
    if not patched:
        raise W2SError(f"{type(model).__name__} is not patched; call w2s_fast.patch(model) first")
    return patched
