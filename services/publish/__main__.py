"""Run a publish worker: `python -m services.publish`."""

from services.publish.stage import PublishStage
from shared.worker import serve

serve(PublishStage())
