"""Inputs, candidates and errors of the benchmarks, one file each."""
