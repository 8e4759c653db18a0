"""What the losses and numbers of this field must satisfy, exactly and in a second, in one place.

gradients are those of the formulas
    ``losses/test_losses.py::test_gradient_identity``
logconf is the released code's
    ``losses/test_logconf.py::test_logconf_openai_equals_released_code``
hard classes are counted by the prior
    ``losses/test_logconf.py::test_hard_class_counts``
warm-up: released, fixed, paper
    ``losses/test_logconf.py::test_schedules``
micro-batches are the batch, to rounding in fp64, also through a model; two processes are one
    ``losses/test_losses.py::test_micro_batches_with_the_exact_threshold``,
    ``training/test_loop.py::test_micro_batches_change_nothing``,
    ``training/test_sharding.py::test_matrix``
EleutherAI's entropy loss does nothing
    here
the product loss is finite
    ``losses/test_losses.py::test_product_in_log_space``
PGR of the Debate paper, from its accuracies and here from answers
    ``metrics/test_gap.py::test_pgr_of_the_debate_table``
anthropic_hh is refused, at the border and here as published
    ``metrics/test_gap.py::test_anthropic_hh_is_refused``
"""

from __future__ import annotations

import ast
import re

import numpy as np
import pytest
import torch
from helpers.paths import TESTS

from w2s_fast import metrics
from w2s_fast.losses import make_loss


def test_the_table_names_tests_that_exist() -> None:
    named = re.findall(r"``([\w/]+\.py)::(test_\w+)``", __doc__ or "")
    assert len(named) == 10
    for file, name in named:
        tree = ast.parse((TESTS / file).read_text())
        assert name in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}, name


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("step", [0, 30, 100, 400])
def test_the_entropy_loss_of_eleuther_is_a_smaller_step(classes: int, step: int) -> None:
    """Its gradient is (1-c) times that of cross-entropy: the student's own soft prediction,
    detached, is no target. Written here as released, against the loss and against xent."""
    g = torch.Generator().manual_seed(classes)
    logits = torch.randn(32, classes, generator=g, dtype=torch.float64)
    weak = torch.randn(32, classes, generator=g, dtype=torch.float64).softmax(1)
    weight = torch.linspace(0, 1, 32, dtype=torch.float64)
    loss, c = make_loss("entropy_eleuther"), 0.5 * min(1, step / 100)
    z = [logits.clone().requires_grad_() for _ in range(3)]
    target = (1 - c) * weak + c * z[0].detach().softmax(1)
    released = (weight * -(target * z[0].log_softmax(1)).sum(1)).sum()
    ours = loss(z[1], weak, weight=weight, step=step).loss_sum
    plain = make_loss("xent")(z[2], weak, weight=weight).loss_sum
    for value in (released, ours, plain):
        value.backward()
    assert abs(released - ours) < 1e-12
    a, b, x = (t.grad for t in z)
    assert a is not None and b is not None and x is not None
    assert (a - b).abs().max() < 1e-12
    assert (b - (1 - c) * x).abs().max() < 1e-15


def test_the_debate_papers_gaps_from_right_and_wrong_answers() -> None:
    """arXiv 2501.13124, SciQ, 1000 items: the pipeline's way from predictions to PGR."""
    labels = np.zeros(1000, int)

    def model(right: int) -> np.ndarray:
        probs = np.tile([0.2, 0.8], (1000, 1))
        probs[:right] = [0.8, 0.2]
        return probs

    def score(right: int) -> float:
        return metrics.accuracy(model(right), labels)

    for right, published in ((915, 44.1), (914, 41.2), (917, 50.0), (918, 52.9), (926, 76.5)):
        assert round(100 * metrics.pgr(score(900), score(right), score(934)), 1) == published
    # 3.4 points on 1000 items are 2.8 standard errors: such a PGR may be printed.
    assert (
        metrics.omission_reason(0.900, 0.934, metrics.gap_se(0.9, 0.934, 1000), n_items=1000)
        is None
    )


@pytest.mark.parametrize("ceiling", [0.4900, 0.4902, 0.4908, 0.4911, 0.4936, 0.4960, 0.508])
def test_anthropic_hh_as_published_is_refused(ceiling: float) -> None:
    """Each size of openai/weak-to-strong over gpt2, and the Debate paper's ceiling over 48.8 %."""
    floor = 0.488 if ceiling == 0.508 else 0.4924
    se = metrics.gap_se(floor, ceiling, 8552)
    assert metrics.omission_reason(floor, ceiling, se, n_items=8552) is not None
