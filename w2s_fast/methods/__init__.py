"""Weak-to-strong methods: what happens between the weak labels and the student, one per file.

``METHODS`` maps names to classes. A spec is ``name`` or ``name:field=value,field=value``; ``a|b``
applies ``a``, then ``b``; a name with a dot, ``package.module:Class``, is imported.
"""

from __future__ import annotations

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import (
    METHODS,
    Method,
    Naive,
    Targets,
    choice,
    make_method,
    number,
    student_nodes,
)
from w2s_fast.methods._low_capacity import low_capacity_probs
from w2s_fast.methods._node import Node, all_nodes, spec_of
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._supervised_plan import SupervisedPlan
from w2s_fast.methods._texts import PairLabels, Prompts, Samples, TextLabels
from w2s_fast.methods.agree import Agree
from w2s_fast.methods.agree_prior import AgreePrior
from w2s_fast.methods.agreement_sft import AgreementSFT
from w2s_fast.methods.anchor import AnchorStates
from w2s_fast.methods.bayesian import Bayesian
from w2s_fast.methods.bootstrap import Bootstrap, StrongToStrong
from w2s_fast.methods.born_again import BornAgain
from w2s_fast.methods.ccs import CCS
from w2s_fast.methods.co_teaching import CoTeaching
from w2s_fast.methods.combine import Combine
from w2s_fast.methods.confidence_weighted import ConfidenceWeighted
from w2s_fast.methods.confident import Confident
from w2s_fast.methods.conflict import Conflict, ExplicitConflict, ImplicitConflict
from w2s_fast.methods.conformal import Conformal
from w2s_fast.methods.cong import ConG
from w2s_fast.methods.consistent import Consistent
from w2s_fast.methods.contrast import Contrast
from w2s_fast.methods.critique import Critique
from w2s_fast.methods.debate import Consultancy, Debate, MarketMaking
from w2s_fast.methods.debias import Debias
from w2s_fast.methods.delta import WSPO, Delta
from w2s_fast.methods.early_stop import EarlyStop, GroundTruthEarlyStop
from w2s_fast.methods.easy_to_hard import EasyToHard
from w2s_fast.methods.elicit import Elicit
from w2s_fast.methods.ensem_w2s import EnsemW2S
from w2s_fast.methods.ensemble import Ensemble
from w2s_fast.methods.fixmatch import FixMatch
from w2s_fast.methods.generative_finetuning import GenerativeFinetuning
from w2s_fast.methods.interpolate import Interpolate
from w2s_fast.methods.knn_filter import KNNFilter
from w2s_fast.methods.linear_probe import LinearProbe
from w2s_fast.methods.low_rank import LowRank
from w2s_fast.methods.matryoshka import Matryoshka
from w2s_fast.methods.mean_teacher import MeanTeacher
from w2s_fast.methods.mixup import Mixup
from w2s_fast.methods.nested_dropout import NestedDropout
from w2s_fast.methods.posterior import Posterior
from w2s_fast.methods.probes import ProbeFilter, ProbeRelabel
from w2s_fast.methods.projection_head import ProjectionHead
from w2s_fast.methods.prototype import Prototype
from w2s_fast.methods.prototype_head import PrototypeHead
from w2s_fast.methods.resample import Resample
from w2s_fast.methods.selective import Selective
from w2s_fast.methods.self_consistency import SelfConsistency
from w2s_fast.methods.self_training import SelfTraining
from w2s_fast.methods.small_loss import SmallLoss
from w2s_fast.methods.soup import GreedySoup, Soup
from w2s_fast.methods.teacher_weights import TeacherWeights
from w2s_fast.methods.trajectory import Trajectory
from w2s_fast.methods.tree_pairs import TreePairs
from w2s_fast.methods.trust import Trust

METHODS |= {
    "naive": Naive,
    "bootstrap": Bootstrap,
    "strong_to_strong": StrongToStrong,
    "probe_relabel": ProbeRelabel,
    "probe_filter": ProbeFilter,
    "elicit": Elicit,
    "ccs": CCS,
    "consistent": Consistent,
    "posterior": Posterior,
    "prototype": Prototype,
    "debias": Debias,
    "confident": Confident,
    "confidence_weighted": ConfidenceWeighted,
    "resample": Resample,
    "agree": Agree,
    "agree_prior": AgreePrior,
    "agreement_sft": AgreementSFT,
    "contrast": Contrast,
    "self_consistency": SelfConsistency,
    "knn_filter": KNNFilter,
    "small_loss": SmallLoss,
    "trajectory": Trajectory,
    "conformal": Conformal,
    "trust": Trust,
    "selective": Selective,
    "ensemble": Ensemble,
    "ensem_w2s": EnsemW2S,
    "bayesian": Bayesian,
    "teacher_weights": TeacherWeights,
    "combine": Combine,
    "born_again": BornAgain,
    "nested_dropout": NestedDropout,
    "co_teaching": CoTeaching,
    "mean_teacher": MeanTeacher,
    "fixmatch": FixMatch,
    "self_training": SelfTraining,
    "early_stop": EarlyStop,
    "ground_truth_early_stop": GroundTruthEarlyStop,
    "explicit_conflict": ExplicitConflict,
    "implicit_conflict": ImplicitConflict,
    "probe": LinearProbe,
    "anchor": AnchorStates,
    "low_rank": LowRank,
    "matryoshka": Matryoshka,
    "prototype_head": PrototypeHead,
    "projection_head": ProjectionHead,
    "mixup": Mixup,
    "soup": Soup,
    "greedy_soup": GreedySoup,
    "interpolate": Interpolate,
    "generative_finetuning": GenerativeFinetuning,
    "debate": Debate,
    "consultancy": Consultancy,
    "market_making": MarketMaking,
    "critique": Critique,
    "delta": Delta,
    "wspo": WSPO,
    "cong": ConG,
    "easy_to_hard": EasyToHard,
    "tree_pairs": TreePairs,
}

__all__ = [
    "METHODS",
    "Conflict",
    "Method",
    "Naive",
    "Node",
    "PairLabels",
    "Plan",
    "Prompts",
    "Samples",
    "SupervisedPlan",
    "Targets",
    "TextLabels",
    "all_nodes",
    "choice",
    "low_capacity_probs",
    "make_method",
    "make_steps",
    "number",
    "spec_of",
    "student_nodes",
]


def make_steps(spec: str) -> tuple[Method, ...]:
    """Build the methods of ``a|b|c``, in order.

    Raises:
        W2SError: One of them has no name, or as ``make_method``.
    """
    names = [part.strip() for part in spec.split("|")]
    if not all(names):
        raise W2SError(f"method {spec!r}: expected names with one '|' between two of them")
    return tuple(make_method(name) for name in names)
