"""The demonstration: a phantom dataset made out of nothing, and the main job run on it.

A folder and a seed enter; a dataset, a trained model and pictures to look at leave.
"""
