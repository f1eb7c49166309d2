"""Charts: the curves of a run, the forecast of its best score, the fingerprint of a dataset.

The inputs are numbers over epochs or cases; the outputs are Matplotlib figures.
"""
