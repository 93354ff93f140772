"""The sensitive layers of the CMS tracker of 2017-2018: cylinders around the beam, and disks across it.

Radii, z and extents are those of the detector papers (JINST 3 (2008) S08004, section 3; the pixel detector since
2017: CMS-TDR-011), with each layer thin and closed. The forward pixel disks have no channel and are left out.
"""

import numpy as np

from stages.detector.tracker import TEC, TIB, TID, TOB

BPIX = 0
"""Stands for the pixel barrel where the strips have their subdetector number."""

_BPIX_R, _BPIX_Z = (2.9, 6.8, 10.9, 16.0), 27.0
_TIB_R, _TIB_Z = (25.767, 34.104, 41.974, 49.907), 66.0
_TOB_R, _TOB_Z = (60.937, 69.322, 78.081, 86.876, 96.569, 108.063), 108.7
_TID_Z = (77.5, 90.0, 102.5)
TEC_Z_CM = (131.0, 145.0, 159.0, 173.0, 187.0, 203.5, 222.5, 243.0, 265.0)
_TEC_R = (*[22.5] * 3, *[31.0] * 3, *[39.0] * 2, 50.0)
"""Inner radius of each wheel: the later ones lack the inner rings."""

CYLINDERS = np.array(
    [
        (radius, half_length, subdetector, layer)
        for subdetector, radii, half_length in ((BPIX, _BPIX_R, _BPIX_Z), (TIB, _TIB_R, _TIB_Z), (TOB, _TOB_R, _TOB_Z))
        for layer, radius in enumerate(radii, 1)
    ]
)
"""Radius and half length [cm], subdetector, layer; from the inside out."""

DISKS = np.array(
    [(z, 22.5, 53.9, TID, layer) for layer, z in enumerate(_TID_Z, 1)]
    + [(z, inner, 111.4, TEC, layer) for layer, (z, inner) in enumerate(zip(TEC_Z_CM, _TEC_R, strict=True), 1)]
)
"""|z|, inner and outer radius [cm], subdetector, layer; from the middle out."""
