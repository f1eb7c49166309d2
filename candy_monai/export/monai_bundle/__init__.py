"""From trained experiments to a MONAI Bundle that runs where candy_monai is not installed.

`bundle` writes it: `network` describes the network, `steps` the transforms, `configs` what is run, `metadata` and
`readme` what programs and people read of it; `parity` runs it. `carried` holds modules that are copied into bundles.
"""

from candy_monai.export.monai_bundle.bundle import export_monai_bundle

__all__ = ["export_monai_bundle"]
