"""Predictions against references.

Two folders of label maps (or arrays) enter; they are paired by case, brought onto one grid and measured, and a table of
scores for each case and class leaves, in memory and as JSON.
"""
