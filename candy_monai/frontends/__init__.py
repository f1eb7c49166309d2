"""Remote dashboards."""
