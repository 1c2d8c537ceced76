"""One file per family: a frozen config, a builder that composes blocks, presets.

The file name is the registry: `stemma.build("llama", ...)` imports `stemma.models.llama`.
"""
