"""Figures and pictures of cases, curves, forecasts and datasets.

Tensors and numbers enter; Matplotlib figures (never of ``pyplot``) and PNG files leave. ``case`` and ``charts`` draw on
what ``canvas`` offers; ``surface`` renders a label in 3-D.
"""
