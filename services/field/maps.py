"""The label map of a field, where the layout model samples it."""

from __future__ import annotations

from safetensors.torch import load, save

from shared.contracts.field import FieldRequest, SampledMap, work_key
from shared.contracts.models import ModelRecord
from shared.datasets.field_inputs import check_field, layout_shares
from shared.diffusion.denoiser import Tensors
from shared.diffusion.field_layouts import LayoutField
from shared.diffusion.model_store import load_layouts
from shared.imaging.label_map import write_label_map
from shared.jobs import Context
from shared.seeds import image_seed
from shared.storage import sha256


def sample_map(
    request: FieldRequest, wanted: SampledMap, model: ModelRecord, context: Context
) -> None:
    """Sample the label map of a request, and store it. A killed worker loses one step.

    Raises:
        InputError: the model has no layout model, or cannot give the size or the proportions.
    """
    store, width, height = context.store, wanted.width, wanted.height
    layouts = load_layouts(store, model).to(context.device)
    check_field(store, model, width, height, request.compression)
    shares = layout_shares(store, model, wanted.proportions)
    field = LayoutField(layouts, shares, width, height, model.size)

    def watch(done: int, steps: int) -> None:
        context.progress(done, steps, "steps of the label map")

    about = f"{model.sha256} {shares} {width}×{height} {request.seed}"
    key = work_key(request.field, f"sampling-{sha256(about.encode())[:16]}")

    def keep(state: Tensors) -> None:
        store.put(key, save(state))

    begun = load(store.get(key)) if store.exists(key) else None
    grid = field.sample(image_seed(request.seed, -1), watch, begun, keep)
    store.delete(key)
    with store.writing(request.map_key) as path:
        strips = field.strips(grid)
        write_label_map(path, strips, width, height, model.mpp, model.classes.names)
