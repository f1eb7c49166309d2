"""Datasets: read, check, split, plan, preprocess, sample and augment them.

The inputs are folders in nnU-Net's format, or images in memory; the outputs are fingerprints, plans, stores of
preprocessed cases, and batches of patches for a trainer.
"""
