"""The demonstration: a synthetic dataset, and the main workflow on it.

The inputs are a folder and a seed; the outputs are a dataset, a trained model and images of the results.
"""
