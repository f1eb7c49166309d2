"""Open models from other sources: starting weights, MONAI Bundles, trained nnU-Net folders.

A file or folder written by others is read, and a state_dict with a report of what fits a network, or a predictor, is
returned. Nothing in it is executed unless the caller declares it as trusted.
"""
