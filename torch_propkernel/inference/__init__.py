"""The problem taken from a model, and what conditioning it on its data gives."""
