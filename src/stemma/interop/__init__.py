"""Foreign formats at the edge: read and written here, and seen by `api`, `pipeline`, `cli` only."""
