"""Samples: a store of preprocessed cases, and patches and batches from it.

The inputs are a dataset and a plan; the outputs are batches of tensors for a trainer.
"""
