"""Run an image worker: `python -m services.image`.

Its queue is its own, so an image never waits behind the shards of a dataset.
"""

from services.image.stage import ImageStage
from shared.queue.worker import serve

serve(ImageStage())
