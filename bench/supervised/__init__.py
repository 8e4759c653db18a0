"""Label model to student, end to end, on real data: ``python -m bench supervised``."""
