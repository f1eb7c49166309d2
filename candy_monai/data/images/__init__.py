"""Read and write image files with the geometry that belongs to them."""
