"""One run's state on disk and in memory. Knows no Trainer."""
