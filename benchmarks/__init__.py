"""Measurements beside others' tools: one script for each claim."""
