"""What watches a run and never steers it."""
