"""Everything that a plan does to a case, as pipelines of MONAI transforms: described as plain data, then built."""
