"""What watches a run: console, notebook, curves, previews, forecast.

The frozen events of ``experiment.events`` enter; text on the screen and pictures in the experiment's folder leave.
Observers never change a run, and their failures do not end it.
"""
