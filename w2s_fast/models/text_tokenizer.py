"""A tokenizer made from texts, for built-in models of a run that has no checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 8192  # most tokens; a few thousand short texts have fewer
PAD, END = "<|pad|>", "<|endoftext|>"
# Pieces that no token crosses: a word, a number, marks, or white space. Their length is bounded:
# the time to train grows with the longest piece, and some texts are one long line of letters.
_PIECES = r" ?\p{L}{1,40}| ?\p{N}{1,4}| ?[^\s\p{L}\p{N}]{1,16}|\s{1,16}"


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train byte-level byte-pair encoding on texts (Sennrich et al. 2016, Radford et al. 2019).

    Equal texts give equal tokenizers, in any order and process. Every text has tokens and is
    decoded as it was. Like the embedded task's, the tokenizer opens each text with its end token.

    Args:
        texts: Texts without lone surrogates.
    """
    from tokenizers import Regex, Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
    from tokenizers.processors import TemplateProcessing
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(BPE())
    backend.pre_tokenizer = Sequence(
        [
            Split(Regex(_PIECES), "isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = TemplateProcessing(
        single=f"{END} $A",
        pair=f"{END} $A {END} $B",
        special_tokens=[(END, backend.token_to_id(END))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=END,
        eos_token=END,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer that ``train_tokenizer(...).save_pretrained(folder)`` saved."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
