"""Samples: a store of preprocessed cases, and the patches and batches that are cut from it.

A dataset and a plan enter; batches of tensors for a trainer leave.
"""
