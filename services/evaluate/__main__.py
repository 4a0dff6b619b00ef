"""Run an evaluate worker: `python -m services.evaluate`."""

from services.evaluate.stage import EvaluateStage
from shared.queue.worker import serve

serve(EvaluateStage())
