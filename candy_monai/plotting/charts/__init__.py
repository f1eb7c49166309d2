"""Numbers, drawn: the curves of a run, the forecast of its best score, the fingerprint of a dataset.

Numbers over epochs or cases enter; Matplotlib figures leave.
"""
