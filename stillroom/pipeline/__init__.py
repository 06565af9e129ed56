"""The way through the house: which stages there are, and running them."""

from stillroom.pipeline.chain import parts, waiting
from stillroom.pipeline.order import STAGES, Stage
from stillroom.pipeline.running import Outlook, check, follow, outlook, run_pipeline

__all__ = ["STAGES", "Outlook", "Stage", "check", "follow", "outlook", "parts", "run_pipeline", "waiting"]
