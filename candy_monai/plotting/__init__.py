"""Figures and images of cases, curves, forecasts and datasets.

The inputs are tensors and numbers; the outputs are Matplotlib figures (never of ``pyplot``) and PNG files. ``case`` and
``charts`` draw with ``canvas``; ``surface`` renders a label in 3-D.
"""
