"""Forecast the best score of a run by quotient regression.

The inputs are the scores of the epochs so far; the outputs are the epoch and the value of the best score, with bounds.
Score files of any origin can be read, and no trainer is needed.
"""
