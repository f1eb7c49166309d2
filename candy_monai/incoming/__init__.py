"""Models that come in from elsewhere: starting weights, MONAI Bundles, nnU-Net's trained folders.

A file or a folder that others wrote enters; a state_dict with a report of what fits a network, or a predictor, leaves.
Nothing in what enters is executed unless the caller says that it is trusted.
"""
