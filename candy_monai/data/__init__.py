"""Datasets: read, check, split, plan, preprocess, sample and augment them.

A folder in nnU-Net's format, or lists of images in memory, enter; a fingerprint, a plan, a store of preprocessed cases
and batches of patches for a trainer leave.
"""
