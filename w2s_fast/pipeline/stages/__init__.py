"""The stages of a run, one file for each kind of work; ``registry`` names them all."""
