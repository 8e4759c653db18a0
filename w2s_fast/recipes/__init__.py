"""Published experiments as runs: settings, sources, expected numbers, and a toy twin of each.

A recipe is a folder: ``card.yaml`` says what was published, ``run.yaml`` is the run at its scale,
and ``toy.yaml`` the same stages on the embedded tasks, in about a minute of a CPU.
"""

from w2s_fast.recipes.card import Card, load_card, recipe_names, run_file, toy_file

__all__ = ["Card", "load_card", "recipe_names", "run_file", "toy_file"]
