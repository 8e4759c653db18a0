"""Names of the files and folders that stages write and later stages read."""

from __future__ import annotations

LABELS = "labels"  # folder: weak labels, in parts
TRANSCRIPTS = "transcripts"  # folder: what was argued about each item, in parts
MODEL = "model.safetensors"  # trained weights
PRETRAINED = "model"  # folder: the embedded task's language model
FEATURES = "features.safetensors"  # cached hidden states
BALANCE = "balance.npy"  # class balance of the true labels
TEST = "test.parquet"  # predictions of the test items
LOG = "log.json"  # loss and metrics of every step
TRAJECTORY = "trajectory.npy"  # predictions of the training items, epoch by epoch
SCORES = "scores.json"  # the scores of a whole run
