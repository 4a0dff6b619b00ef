"""Run an embed worker: `python -m services.embed`."""

from services.embed.stage import EmbedStage
from shared.queue.worker import serve

serve(EmbedStage())
