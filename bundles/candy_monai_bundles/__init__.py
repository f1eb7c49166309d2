"""Ready-made trainers and predictors, one module per architecture.

A trainer is built from the loaders of a dataset, and a predictor from the folder of a run. Each module's ``BUNDLE`` is
registered as an entry point in ``pyproject.toml``, by which the library finds it.
"""
