"""Labeling functions: written, of keywords, or generated from about a hundred labeled rows.

Functions of texts and arrays. All return votes (n, m) or (n,) of classes 0 .. K-1, -1 where a
function abstains, as ``w2s_fast.label_models`` takes them.
"""

from w2s_fast.label_models.votes import ABSTAIN
from w2s_fast.labeling.affinity import affinity_labels
from w2s_fast.labeling.applying import apply_functions
from w2s_fast.labeling.functions import LabelingFunction, labeling_function
from w2s_fast.labeling.generator import Candidates, GeneratedFunctions, Generator
from w2s_fast.labeling.label_words import label_word_votes
from w2s_fast.labeling.loading import load_functions, source_digest
from w2s_fast.labeling.logistic import Logistic
from w2s_fast.labeling.neighbors import Neighbors
from w2s_fast.labeling.patterns import keyword_candidates, keywords, regex
from w2s_fast.labeling.selection import Selection, accuracy_oracle, select_functions
from w2s_fast.labeling.stumps import Stumps
from w2s_fast.labeling.summary import FunctionSummary, function_summary, wilson_interval
from w2s_fast.labeling.vocabulary import Vocabulary
from w2s_fast.specs import build

__all__ = [
    "ABSTAIN",
    "GENERATORS",
    "Candidates",
    "FunctionSummary",
    "GeneratedFunctions",
    "Generator",
    "LabelingFunction",
    "Logistic",
    "Neighbors",
    "Selection",
    "Stumps",
    "Vocabulary",
    "accuracy_oracle",
    "affinity_labels",
    "apply_functions",
    "function_summary",
    "keyword_candidates",
    "keywords",
    "label_word_votes",
    "labeling_function",
    "load_functions",
    "make_generator",
    "regex",
    "select_functions",
    "source_digest",
    "wilson_interval",
]

GENERATORS: dict[str, type[Generator]] = {
    "stumps": Stumps,
    "logistic": Logistic,
    "neighbors": Neighbors,
}


def make_generator(spec: str) -> Generator:
    """Build a generator from a spec such as ``stumps:max_functions=20``.

    Raises:
        W2SError: There is no such generator or setting, or a value is wrong.
    """
    return build(spec, GENERATORS, Generator, "generator")  # type: ignore[type-abstract]
