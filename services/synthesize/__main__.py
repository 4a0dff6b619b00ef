"""Run a synthesize worker: `python -m services.synthesize`."""

from services.synthesize.stage import SynthesizeStage
from shared.queue.worker import serve

serve(SynthesizeStage())
