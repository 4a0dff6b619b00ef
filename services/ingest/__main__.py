"""Run an ingest worker: `python -m services.ingest`."""

from services.ingest.stage import IngestStage
from shared.queue.worker import serve

serve(IngestStage())
