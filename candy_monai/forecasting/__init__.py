"""Curves in, forecast out: the best score to come, by quotient regression. Knows nothing of training."""
