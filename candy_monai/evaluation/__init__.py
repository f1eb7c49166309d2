"""Evaluate predictions against references.

The inputs are two folders of label maps (or arrays), which are paired by case and resampled to one grid; the output is
a table of scores for each case and class, in memory and as JSON.
"""
