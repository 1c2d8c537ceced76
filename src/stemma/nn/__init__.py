"""Building blocks of networks: a variant is an object that is handed in, never a flag."""
