"""The stages of a run, one file for each kind of work; ``table`` names them all."""
