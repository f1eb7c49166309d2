"""Ready-made trainers and predictors, one module an architecture.

The loaders of a dataset, or a run's folder, enter; a trainer with its network, or a predictor, leaves. Each module's
``BUNDLE`` is registered as an entry point in ``pyproject.toml``, by which the library finds it.
"""
