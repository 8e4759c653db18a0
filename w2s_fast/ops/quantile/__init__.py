"""Order statistics of scores: ``api``, a file a backend, and the search over a process group."""
