"""Long campaigns of faults against whole runs: ``python -m campaigns`` in ``tests``."""
