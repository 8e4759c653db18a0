"""Compare every class of transformers with itself after `patch`; `command` runs the comparison."""
