"""Other weak-to-strong code bases on equal work: ``python -m bench side_by_side``."""
