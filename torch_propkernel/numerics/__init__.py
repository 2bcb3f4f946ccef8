"""Numerics without any physics: safe elementary functions and special functions."""
