"""Run a deploy worker: `python -m services.deploy`."""

from services.deploy.stage import DeployStage
from shared.queue.worker import serve

serve(DeployStage())
