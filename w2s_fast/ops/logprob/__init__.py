"""Log-probabilities of listed classes, by the row kernels of ``cross_entropy``."""
