"""Datasets: files, folders in nnU-Net's format, tensors in memory, their folds.

Converts paths or tensors into cases by number or id, as images with labels. No voxel is changed.
"""
