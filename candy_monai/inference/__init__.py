"""Predict label maps in the geometry of the scans.

The inputs are an experiment's folder (or a network) and images of any spacing and orientation; the outputs are logits
and label maps on the images' own grids, as arrays or files. Large images are run in sliding windows.
"""
