"""Losses of a language-model head whose logits are never stored: they are made chunk by chunk."""
