"""The processing of a case according to a plan, as pipelines of MONAI transforms.

Plans are converted into descriptions as plain data (stored in ``experiment.json`` and exports), and descriptions into a
``monai.transforms.Compose``. A user's own augmentation has the same format.
"""
