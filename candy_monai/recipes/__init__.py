"""Dataset, plan, bundle and budget in, a trained experiment out."""
