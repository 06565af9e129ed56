"""Serving: an OpenAI-compatible front over llama.cpp, and the cascade that decides who answers."""

from stillroom.routing import Cascade
from stillroom.serving.app import create_app
from stillroom.serving.server import model_file, serve

__all__ = ["Cascade", "create_app", "model_file", "serve"]
