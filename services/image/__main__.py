"""Run an image worker: `python -m services.image`.

Image jobs have a queue of their own, so that no image waits behind the shards of a dataset.
"""

from services.image.stage import ImageStage
from shared.queue.worker import serve

serve(ImageStage())
