"""Observers of a run: console, notebook, curves, previews, forecast.

The inputs are the immutable events of ``experiment.events``; the outputs are text on the console and pictures in the
experiment folder. Observers never change a run, and their failures do not end it.
"""
