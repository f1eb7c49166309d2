"""Everything that a plan does to a case, as pipelines of MONAI transforms.

A plan enters; a description in plain data leaves (``experiment.json`` and exports hold it), and from a description a
``monai.transforms.Compose``. A user's own augmentation enters in the same language.
"""
