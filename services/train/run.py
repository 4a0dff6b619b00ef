"""A training run: the request, the region set, and the objects that its segments share."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from services.train.data import Batches, Float16
from services.train.loop import LoopSettings, Progress, Training
from services.train.perceptual import PerceptualLoss
from services.train.warm_start import (
    Weights,
    origin_of,
    read_weights,
    start_denoiser,
    start_vae,
    student_of,
)
from shared.contracts.recipe import DenoiserRecipe, LayoutRecipe, Recipe, VaeRecipe
from shared.contracts.regions import RegionSet
from shared.contracts.train import TrainRequest, training_key
from shared.diffusion.autoencoder import Autoencoder, make_vae, read_vae
from shared.diffusion.conditionings import make_denoiser
from shared.diffusion.denoiser import Denoiser
from shared.errors import InputError
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.jobs import Context
from shared.storage import Store

KINDS = ("vae", "decoder", "denoiser", "layouts")
"""The trainings of a run, in order."""


@dataclass(frozen=True)
class Run:
    """A training run on this machine.

    Attributes:
        request: the request; its recipe says whether the denoiser is a student.
        regions: the region set.
        store: object store of regions, checkpoints and models.
        device: device of the networks.
    """

    request: TrainRequest
    regions: RegionSet
    store: Store
    device: str

    @classmethod
    def open(cls, request: TrainRequest, context: Context) -> Run:
        """Open the run of a request, and read its region set.

        Raises:
            InputError: the region set or the model to start from cannot be read.
        """
        regions = load_region_set(context.store, request.regions)
        return cls(_with_student(request, context.store), regions, context.store, context.device)

    @property
    def recipe(self) -> Recipe:
        return self.request.recipe

    @property
    def steps(self) -> dict[str, int]:
        """Number of steps of each training."""
        recipe = self.recipe
        vae = recipe.vae
        steps = (vae.steps, vae.decoder_steps, recipe.denoiser.steps, recipe.layouts.steps)
        return dict(zip(KINDS, steps, strict=True))

    @property
    def trains_generator(self) -> bool:
        """Whether the run changes the autoencoder or the denoiser."""
        return any(steps for kind, steps in self.steps.items() if kind != "layouts")

    def key(self, name: str) -> str:
        """Return the key of one of the run's objects."""
        return training_key(self.request.run, name)

    def settings(self, kind: str) -> LoopSettings:
        """Return the settings of the training `kind`, one of `KINDS`."""
        recipe, steps = self.recipe, self.steps[kind]
        own: VaeRecipe | DenoiserRecipe | LayoutRecipe = recipe.vae
        if kind in ("denoiser", "layouts"):
            own = recipe.denoiser if kind == "denoiser" else recipe.layouts
        rate = recipe.vae.decoder_learning_rate if kind == "decoder" else own.learning_rate
        return LoopSettings(
            batch_size=own.batch_size,
            learning_rate=rate,
            steps=steps,
            warmup=min(own.warmup, steps // 10 + 1),
            ema=own.ema,
            grad_clip=own.grad_clip,
            precision=recipe.precision,
            seed=self.request.seed + KINDS.index(kind),
            device=self.device,
        )

    def starting_weights(self) -> Weights | None:
        """Read the weights of the warm start, if the request names one."""
        start = self.request.warm_start
        return read_weights(self.store, start) if start else None

    def check_warm_start(self) -> None:
        """Check that the warm start fits the recipe, before anything is trained.

        Raises:
            InputError: it cannot be read, its layers are not the recipe's, or it is to be
                published as it is for regions that are not as large and as fine as its own.
        """
        start, weights, recipe = self.request.warm_start, self.starting_weights(), self.recipe
        if start is None or weights is None:
            return
        origin = origin_of(self.store, start)
        vae = make_vae(recipe.vae)
        try:
            start_vae(vae, weights)
            start_denoiser(self.new_denoiser(vae), weights, self.regions.classes.names)
        except InputError as error:
            raise InputError(
                f"{error}: {start} was trained by the recipe {origin.recipe!r}, not by "
                f"{recipe.name!r}. Take --recipe {origin.recipe}, or no warm start"
            ) from error
        mpp = self.regions.rule.mpp
        unlike = recipe.size != origin.size or abs(mpp - origin.mpp) > 0.05 * origin.mpp
        if unlike and not self.trains_generator:
            raise InputError(
                f"{start} makes images of {origin.size} px at {origin.mpp:g} µm/px, but regions "
                f"{self.request.regions!r} with recipe {recipe.name!r} are of {recipe.size} px at "
                f"{mpp:g} µm/px: ingest with --region-mpp {origin.mpp:g}, or train it without "
                "--as-is"
            )

    def unlearnt(self) -> tuple[str, ...]:
        """Name the classes that a denoiser without training steps has not learnt."""
        if self.steps["denoiser"]:
            return ()
        weights = self.starting_weights()
        learnt = set(weights.classes) - set(weights.unlearnt) if weights else set()
        classes = self.regions.classes
        return tuple(n for n in classes.names[classes.first :] if n not in learnt)

    def perceptual_loss(self) -> PerceptualLoss | None:
        """Load the perceptual loss of the decoder; None if the recipe does not use it."""
        recipe = self.recipe.vae
        if not recipe.decoder_steps or recipe.perceptual is None:
            return None
        return PerceptualLoss(recipe.perceptual, self.store, self.device)

    def index(self) -> RegionIndex:
        """Open the regions of the train split."""
        return RegionIndex(self.store, self.regions, "train")

    def denoiser_batches(self, latents: Float16 | None = None) -> Batches:
        """Return the batches of the denoiser; see `Batches`."""
        recipe = self.recipe
        return Batches(self.index(), recipe.size, recipe.denoiser, (self.request.seed, 3), latents)

    def new_denoiser(self, vae: Autoencoder) -> Denoiser:
        """Make the recipe's denoiser, untrained."""
        return make_denoiser(self.recipe.denoiser, self.recipe.size, self.regions.classes, vae)

    def finished_vae(self) -> Autoencoder:
        """Load the run's autoencoder after the last training that changes it."""
        return self.read_vae("decoder" if self.recipe.vae.decoder_steps else "vae")

    def read_vae(self, kind: str) -> Autoencoder:
        """Load the autoencoder that the training `kind` ('vae' or 'decoder') has written."""
        with tempfile.TemporaryDirectory(prefix="htd-vae-") as folder:
            self.read_folder(kind, Path(folder))
            return read_vae(Path(folder))

    def read_folder(self, kind: str, folder: Path) -> None:
        """Copy the network that the training `kind` has written to a folder."""
        folder.mkdir(exist_ok=True)
        for name in ("config.json", "diffusion_pytorch_model.safetensors"):
            (folder / name).write_bytes(self.store.get(self.key(f"{kind}/{name}")))

    def load_checkpoint(self, training: Training, kind: str, step: int) -> None:
        """Resume a training from its checkpoint at `step`; step 0 has no checkpoint."""
        if step:
            training.load(self.store.get(self._checkpoint(kind, step)))

    def pause(self, training: Training, kind: str, stop: int, progress: Progress) -> None:
        """Write the checkpoint of a segment that ends before `stop`, at the step it has come to."""
        about = {"segment": f"{kind}-{stop}", "progress": json.dumps(asdict(progress))}
        self.store.put(self._paused, training.save(about))

    def resume(self, training: Training, kind: str, start: int, stop: int) -> Progress:
        """Load the checkpoint of a segment that was paused, else the one at `start`."""
        if self.store.exists(self._paused):
            data = self.store.get(self._paused)
            about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            if about["segment"] == f"{kind}-{stop}":
                training.load(data)
                return Progress(**json.loads(about["progress"]))
        self.load_checkpoint(training, kind, start)
        return Progress(start)

    def forget_pause(self) -> None:
        """Delete the checkpoint of a paused segment."""
        if self.store.exists(self._paused):
            self.store.delete(self._paused)

    def load_last_checkpoint(self, training: Training, kind: str) -> None:
        """Resume a training from its last checkpoint."""
        training.load(self.store.get(self._checkpoint(kind, self.steps[kind])))

    def save_checkpoint(self, training: Training, kind: str, start: int, stop: int) -> None:
        """Write the checkpoint at `stop`; keep the one at `start`, and delete the one before it."""
        self.store.put(self._checkpoint(kind, stop), training.save())
        before = start - self.recipe.segment_steps
        if before > 0:
            self.store.delete(self._checkpoint(kind, before))

    @property
    def _paused(self) -> str:
        return self.key("checkpoints/paused.safetensors")

    def _checkpoint(self, kind: str, step: int) -> str:
        return self.key(f"checkpoints/{kind}-{step:08d}.safetensors")


def put_folder(store: Store, prefix: str, folder: Path) -> None:
    """Store all files of a folder below a prefix."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put_file(prefix + path.relative_to(folder).as_posix(), path)


def _with_student(request: TrainRequest, store: Store) -> TrainRequest:
    """Return the request; an untrained denoiser gets the student's recipe of its warm start.

    A denoiser without training steps is published unchanged, so its recipe has to say whether
    it is a student.
    """
    if request.recipe.denoiser.steps:
        return request
    student = student_of(store, request.warm_start) if request.warm_start else None
    denoiser = request.recipe.denoiser.model_copy(update={"student": student})
    recipe = request.recipe.model_copy(update={"denoiser": denoiser})
    return request.model_copy(update={"recipe": recipe})
