"""Losses of a head that is sharded over its classes: ``api``, ``algorithm``, ``merge``."""
