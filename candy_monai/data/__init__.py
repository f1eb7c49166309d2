"""Datasets: read, check, split, plan, preprocess, sample and augment them."""
