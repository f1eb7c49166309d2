"""One run's state, in memory and on disk.

Settings, weights, metrics and states of the trainer's parts enter; a folder that is whole at any moment leaves, with
its description, history, checkpoints and log, and what is needed to continue the run after a crash. It does not import
the trainers.
"""
