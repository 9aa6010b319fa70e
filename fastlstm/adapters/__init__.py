"""Drop-ins for other projects, one file per framework; each imports its framework when it is imported itself, not before."""
