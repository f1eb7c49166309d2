"""Export trained experiments as a MONAI Bundle that runs where candy_monai is not installed.

`bundle` writes it: `network` describes the network, `steps` the transforms, `configs` the workflows; `metadata` and
`readme` write the descriptions for programs and people; `parity` runs it. `carried` holds modules that are copied into
bundles.
"""

from candy_monai.export.monai_bundle.bundle import export_monai_bundle

__all__ = ["export_monai_bundle"]
