"""How it is measured: turns, processes, peak memory, the environment and files of rows."""
