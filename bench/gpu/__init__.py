"""Build, test and time everything on a machine with a CUDA device; ``suite`` runs the rest."""
