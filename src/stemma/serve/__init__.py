"""Serving: an OpenAI-compatible API and a chat page, over models that are handed in loaded.

The embedded server for one machine: one engine thread answers one request after the other. For
serving at scale, export a model and run a server made for that.
"""
