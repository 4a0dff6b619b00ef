"""Run a field worker: `python -m services.field`."""

from services.field.stage import FieldStage
from shared.queue.worker import serve

serve(FieldStage())
