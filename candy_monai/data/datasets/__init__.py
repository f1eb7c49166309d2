"""Datasets: files, folders in nnU-Net's format, tensors in memory, their folds.

Paths or tensors enter; cases by number or id, as images with labels, leave. Nothing here changes a voxel.
"""
