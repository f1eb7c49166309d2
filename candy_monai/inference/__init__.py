"""From an image to a label map in the scan's own geometry."""
