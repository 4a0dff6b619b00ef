"""Run an embed worker: `python -m services.embed`."""

from services.embed.stage import EmbedStage
from shared.worker import serve

serve(EmbedStage())
