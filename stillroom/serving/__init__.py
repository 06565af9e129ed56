"""Serving: an OpenAI-compatible front over llama.cpp, the cascade that decides who answers, a page to compare models on."""

from stillroom.routing import Cascade
from stillroom.serving.app import create_app
from stillroom.serving.cascading import Cascading
from stillroom.serving.comparing import Comparison, Preset
from stillroom.serving.escalations import Escalations
from stillroom.serving.relay import Backend
from stillroom.serving.server import model_file, serve, serve_models
from stillroom.serving.votes import Votes

__all__ = [
    "Backend",
    "Cascade",
    "Cascading",
    "Comparison",
    "Escalations",
    "Preset",
    "Votes",
    "create_app",
    "model_file",
    "serve",
    "serve_models",
]
