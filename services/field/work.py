"""The sampler of a field, and the latents of its strips in the store between steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from safetensors.torch import load, save

from shared.contracts.field import FieldCrop, FieldRequest, field_key, work_key
from shared.diffusion.appearances import Appearance
from shared.diffusion.crops import Crop
from shared.diffusion.fields import FieldMap, FieldSampler, Strip, join
from shared.diffusion.model_store import load_model
from shared.imaging.codec import decode_png
from shared.imaging.stored_slides import open_label_map
from shared.jobs import Context
from shared.serving.generator import open_server
from shared.storage import Store


@dataclass(frozen=True)
class FieldWork:
    """A field that is being made.

    Attributes:
        sampler: makes and decodes its latents.
    """

    store: Store
    field: str
    sampler: FieldSampler

    @classmethod
    @contextmanager
    def open(cls, request: FieldRequest, context: Context) -> Iterator[FieldWork]:
        """Load the model, and open the label map and the crops that the plan chose."""
        store = context.store
        model = load_model(store, request.model_ref, context.device)
        facts = store.get_json(work_key(request.field, "plan.json"))
        crops = [FieldCrop.model_validate(crop) for crop in facts["crops"]]
        with open_label_map(store, request.map_key, facts["map"]) as labels:
            sampler = FieldSampler(
                model.pipeline,
                model.record.size,
                request.sampling(model.record),
                FieldMap(
                    labels.height,
                    labels.width,
                    lambda top, bottom: labels.window(0, top, labels.width, bottom - top),
                ),
                list(_appearances(store, request.field, crops)),
                request.seed,
                model.record.recipe.precision,
                open_server(store, model.record, tenant=context.tenant),
            )
            sampler.watch = context.progress  # raises once the job is cancelled
            yield cls(store, request.field, sampler)

    def rows(self, top: int, bottom: int) -> tuple[int, int]:
        """Turn rows of pixels into rows of latent pixels."""
        factor = self.sampler.factor
        return top // factor, -(-bottom // factor)

    def read(self, step: int, height: int, top: int, bottom: int) -> Strip:
        """Read latents before a step: the noise, or what the strips hold that cover some rows.

        Args:
            step: number of the step.
            height: height of a strip, pixels.
            top, bottom: the rows, in latent pixels.
        """
        if step == 0:
            return self.sampler.noise(top, bottom)
        tall, end = height // self.sampler.factor, self.sampler.height
        strips = [(start, min(start + tall, end)) for start in range(0, end, tall)]
        spans = {strip[0]: self.sampler.span(step - 1, *strip) for strip in strips}
        near = [start for start, own in spans.items() if own[0] < bottom and own[1] > top]
        return join([self._read(step, start, spans[start][0]) for start in near]).rows(top, bottom)

    def write(self, step: int, start: int, strip: Strip) -> None:
        """Store the rows before a step of the strip that starts at some row."""
        tensors = {"sample": strip.sample.contiguous()}
        if strip.before is not None:
            tensors["before"] = strip.before.contiguous()
        self.store.put(self._key(step, start), save(tensors))

    def _read(self, step: int, start: int, top: int) -> Strip:
        tensors = load(self.store.get(self._key(step, start)))
        return Strip(top, tensors["sample"], tensors.get("before"))

    def _key(self, step: int, start: int) -> str:
        return work_key(self.field, f"latents/{step:03d}/{start:07d}")


def _appearances(store: Store, field: str, crops: Sequence[FieldCrop]) -> Iterator[Appearance]:
    """Yield the appearances of a field, by their numbers; without crops, an empty one."""
    for number in range(max((crop.appearance for crop in crops), default=0) + 1):
        own = [crop for crop in crops if crop.appearance == number]
        place = own[0].at if own else None
        read = [
            Crop(crop.label, 0, 0, decode_png(store.get(crop_key(field, number, crop.label))))
            for crop in own
        ]
        yield Appearance.of(read, *(place or ()))


def crop_key(field: str, appearance: int, label: int) -> str:
    """Return the key of the crop of a class in an appearance."""
    return field_key(field, f"crops/{appearance}-{label}.png")
