"""Processes, and the pieces of models that solvers need."""
