"""Configuration, errors, files, assets, the machine: no mathematics, no policy."""
