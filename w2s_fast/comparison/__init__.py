"""Compare results: of files that others made, of two runs, and of many runs as a data frame."""
