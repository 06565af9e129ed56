"""Serving: an OpenAI-compatible front over llama.cpp."""

from stillroom.serving.app import create_app
from stillroom.serving.relay import Backend
from stillroom.serving.server import model_file, serve

__all__ = ["Backend", "create_app", "model_file", "serve"]
