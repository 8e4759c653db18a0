"""Operators and torch functions that ``LazyLogits`` refuses, or handles by its methods."""

from __future__ import annotations

# Python looks up operators in the class: without them, ``==`` would return False, others raise
# TypeError.
UNSUPPORTED_OPERATORS = (
    "__sub__", "__rsub__", "__neg__", "__abs__", "__pow__", "__rpow__", "__rtruediv__",
    "__floordiv__", "__mod__", "__matmul__", "__rmatmul__", "__and__", "__or__", "__invert__",
    "__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__", "__bool__", "__float__", "__int__",
    "__array__", "__contains__",
)  # fmt: skip
# Keywords that the methods of shape operations accept.
SHAPE_KEYWORDS = {"start_dim", "end_dim", "dim"}
# Functions whose first argument may be the other operand.
COMMUTATIVE = {"mul", "multiply", "add", "__mul__", "__rmul__", "__add__", "__radd__"}
# Name of a torch function -> the method of ``LazyLogits`` that handles it.
FUNCTIONS = {
    "mul": "mul", "multiply": "mul", "__mul__": "mul", "__rmul__": "mul",
    "add": "add", "__add__": "add", "__radd__": "add",
    "div": "div", "divide": "div", "true_divide": "div", "tanh": "tanh",
    "reshape": "view", "flatten": "flatten", "unsqueeze": "unsqueeze", "squeeze": "squeeze",
    "clone": "clone",
}  # fmt: skip
