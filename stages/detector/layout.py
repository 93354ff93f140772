"""Sizes of the detector frame. Apart from `grid` and `hcal`, which compile when they are imported."""

N_ROWS = 280
N_COLUMNS = 360
N_PIXELS = N_ROWS * N_COLUMNS
EB_FIRST_ROW = 55
EB_LAST_ROW = 224

TOWER = 5
"""An HCAL tower is so many pixels wide in both directions."""
N_TOWER_ROWS = N_ROWS // TOWER
N_TOWER_COLUMNS = N_COLUMNS // TOWER
N_TOWERS = N_TOWER_ROWS * N_TOWER_COLUMNS
"""A tower number is `row * N_TOWER_COLUMNS + column`; tower row r covers rows 5 r .. 5 r + 4 of the frame."""
