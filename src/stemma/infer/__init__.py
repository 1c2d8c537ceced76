"""Writing with a model: sampling and the decode loop."""
