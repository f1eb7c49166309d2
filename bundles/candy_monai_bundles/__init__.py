"""Ready-made trainers and predictors, one folder an architecture."""
