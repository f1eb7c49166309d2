"""The trainers: the loop, what a subclass overrides, and the continuation of an interrupted run.

Data loaders and the options of ``train()`` enter; an experiment folder with weights, metrics and previews leaves.
Reading starts at ``trainer.py``: ``Trainer.train`` tells a run from top to bottom, ``run.py`` what surrounds its steps,
``hooks.py`` what can be changed, ``segmentation.py`` the choices made for segmentation.
"""
