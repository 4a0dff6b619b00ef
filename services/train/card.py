"""The card of a published model: its data, recipe and training, and example code."""

from __future__ import annotations

from shared.contracts.models import ModelRecord, WeightsOrigin
from shared.contracts.regions import RegionSet


def model_card(
    model: ModelRecord,
    record: RegionSet,
    rows: dict[str, list[dict[str, float]]],
    origin: WeightsOrigin | None = None,
) -> str:
    """Write the card in Markdown, with the metadata block that model hubs read.

    Args:
        model: the published version.
        record: its region set.
        rows: training (such as 'denoiser') → rows of metrics.
        origin: origin of the weights, where they come from a checkpoint of the package.
    """
    recipe = model.recipe
    counts = {
        split: (len(parts), sum(part.regions for part in parts))
        for split in ("train", "val", "test")
        if (parts := record.of_split(split))
    }
    lines = [
        "---",
        "library_name: diffusers",
        f"license: {origin.license.lower() if origin else 'unknown'}",
        "tags: [histopathology, semantic-image-synthesis, latent-diffusion]",
        "---",
        f"# {model.model} {model.version}",
        "",
        "A latent diffusion model of histology, conditioned on a semantic label map and on raw",
        "tissue crops (HeteroTissue-Diffuse, Alfasly et al., NeurIPS 2025), by "
        f"`{recipe.denoiser.conditioning}` conditioning.",
        "",
        "```python",
        *_example(model).splitlines(),
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| image | {model.size} × {model.size} px at {model.mpp} µm/px |",
        f"| classes | {', '.join(model.classes.names)} |",
        *(
            [f"| never learnt | {', '.join(model.unlearnt)}: without a crop they look alike |"]
            if model.unlearnt
            else []
        ),
        f"| region set | {model.regions} (labels: {record.labels}) |",
        *(
            f"| {split} split | {slides} slides, {regions} regions |"
            for split, (slides, regions) in counts.items()
        ),
        f"| recipe | {recipe.name}: VAE {recipe.vae.steps} steps, "
        f"denoiser {recipe.denoiser.steps} steps of {recipe.denoiser.batch_size} |",
        f"| warm start | {model.warm_start or 'none'} |",
        f"| objective | flow matching; EMA {recipe.denoiser.ema} |",
        *(
            f"| last {kind} loss | {values[-1]['loss']:.4f} (step {int(values[-1]['step'])}) |"
            for kind, values in rows.items()
            if values
        ),
        "",
        "The model was trained on the train split only. Its images are synthetic and for research;",
        "they are not for diagnosis.",
        *([origin.sentence] if origin else []),
        "",
    ]
    return "\n".join(lines)


def _example(model: ModelRecord) -> str:
    """Return Python code that makes an image, to be run in the folder of the model."""
    label, size = model.classes.first, model.size
    settings = model.recipe.sampling
    order = "first" if settings.first_order else "second"
    return f"""\
import numpy as np
from PIL import Image

from heterotissue.models import Crop, HeteroTissuePipeline

pipeline = HeteroTissuePipeline.from_pretrained(".")  # this folder

# A label map with class {label} ({model.classes.names[label]}) everywhere, and no crops.
# A crop is real tissue of a class: Crop(label={label}, x=0, y=0, pixels=array), uint8 RGB.
labels = np.full((1, {size}, {size}), {label}, np.uint8)
crops: list[list[Crop]] = [[]]

# By default: {settings.steps} {order}-order steps, guidance {settings.guidance_map:g} (map) \
and {settings.guidance_crops:g} (crops).
images = pipeline(labels, crops, seeds=[0])  # uint8 RGB (1, {size}, {size}, 3)
Image.fromarray(images[0]).save("sample.png")
"""
