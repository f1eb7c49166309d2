"""The forecast of the best score that a run will reach, by quotient regression.

The scores of the epochs so far enter; the epoch and the value of the best score, with bounds, leave. It reads score
files of any origin and needs no trainer.
"""
