"""The state of one run, in memory and on disk.

The inputs are settings, weights, metrics and the states of the trainer's parts; the output is a folder that is
consistent at any moment, with its description, history, checkpoints and log, and everything needed to resume the run
after a crash. This package does not import the trainers.
"""
