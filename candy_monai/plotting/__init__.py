"""Figures and pictures of cases, curves, forecasts and scores.

Tensors and numbers enter; Matplotlib figures (never of ``pyplot``) and PNG files leave. Nothing here knows a run.
"""
