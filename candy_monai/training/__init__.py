"""The Trainer hierarchy."""
