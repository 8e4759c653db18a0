"""The data sets, one a file; ``w2s_fast.tasks.TASKS`` names them."""
