"""Pieces around a network: losses, deep supervision, schedules, EMA, padding and its inverse."""
