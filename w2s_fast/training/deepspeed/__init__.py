"""Students that are sharded over processes by DeepSpeed ZeRO, behind the steps of ``training``."""
