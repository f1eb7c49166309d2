"""The trainers: the loop, the methods that a subclass overrides, and resuming an interrupted run.

The inputs are data loaders and the options of ``train()``; the output is an experiment folder with weights, metrics and
previews. Start reading at ``trainer.py``: ``Trainer.train`` shows a run from top to bottom, ``run.py`` the work around
its steps, ``hooks.py`` the methods to override, ``segmentation.py`` the defaults for segmentation.
"""
