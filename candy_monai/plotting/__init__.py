"""Tensors in, figures out."""
