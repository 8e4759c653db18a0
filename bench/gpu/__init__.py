"""Build, test and time everything on a machine with a CUDA device; start with ``suite``."""
