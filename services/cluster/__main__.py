"""Run a cluster worker: `python -m services.cluster`."""

from services.cluster.stage import ClusterStage
from shared.queue.worker import serve

serve(ClusterStage())
