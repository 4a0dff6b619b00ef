"""Run a train worker: `python -m services.train`."""

from services.train.stage import TrainStage
from shared.queue.worker import serve

serve(TrainStage())
