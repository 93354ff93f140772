"""Fast simulation: particles through the tracker material into calorimeter hits, without Geant4."""
