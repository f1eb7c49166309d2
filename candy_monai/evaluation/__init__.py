"""Evaluate predictions against references.

The inputs are two folders of label maps (or arrays), which are paired by case and brought to the same axes; grids that
then differ are refused. The output is a table of scores for each case and class, in memory and as JSON.
"""
