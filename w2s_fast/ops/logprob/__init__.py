"""Log-probabilities of top-k classes, by the row kernels of ``cross_entropy``."""
