"""A training recipe: the autoencoder, the denoiser, and how both are trained."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.contracts.base import Contract, EncoderName, Name, Opens
from shared.contracts.sampling import GuidanceScale, Sampling

EMBEDDED_VAE = "embedded"
"""Name of the VAE in the package."""

Channels = Annotated[int, Field(ge=1)]


class VaeRecipe(Contract):
    """The autoencoder: the embedded one, any diffusers VAE, or a small one trained from scratch."""

    pretrained: Annotated[str, Opens.VAE] | None = Field(
        None,
        description="'embedded' (in the package, trained on real tissue), or the folder or hub id "
        "of a diffusers VAE",
    )
    architecture: Literal["kl", "dc"] = Field(
        "kl",
        description="type of a VAE from scratch: kl is diffusers' AutoencoderKL; dc is its "
        "AutoencoderDC, which learns faster because its shortcuts fold pixels into channels",
    )
    channels: tuple[Channels, ...] = Field(
        (32, 64, 128, 128),
        min_length=1,
        description="channels of the levels, from full (kl) or half (dc) resolution on",
    )
    layers: int = Field(1, ge=1)
    latent_channels: int = Field(16, ge=1)
    noise: float = Field(
        0,
        ge=0,
        description="largest noise on latents in training, in their standard deviations; it makes "
        "the autoencoder spend its latents on what matters (l-DeTok)",
    )
    ordered: float = Field(
        0,
        ge=0,
        le=1,
        description="share of training images that are decoded from the first channels alone, an "
        "eighth to three quarters of them, so that these hold what matters most (DC-AE 1.5)",
    )
    halved: float = Field(
        0,
        ge=0,
        description="weight of decoding average-pooled latents to the image at half its size, so "
        "that neighbouring latents agree (EQ-VAE)",
    )
    steps: int = Field(0, ge=0, description="training steps; 0 leaves the weights unchanged")
    decoder_steps: int = Field(
        0,
        ge=0,
        description="further steps of the decoder alone, with a patch critic and a perceptual "
        "loss; the latents do not change",
    )
    perceptual: EncoderName | None = Field(
        None, description="encoder of the perceptual loss, such as efficientnet-lite1"
    )
    batch_size: int = Field(8, ge=1)
    crop: int = Field(128, ge=32, description="side of the random training crops, pixels")
    learning_rate: float = Field(2e-4, gt=0)
    decoder_learning_rate: float = Field(
        2e-4, gt=0, description="learning rate of the decoder's further steps"
    )
    warmup: int = Field(100, ge=0)
    ema: float = Field(0.995, ge=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _folds(self) -> VaeRecipe:
        levels = all(4 * fine % coarse == 0 for fine, coarse in pairwise(self.channels))
        folds = levels and self.channels[-1] % self.latent_channels == 0
        if self.architecture == "dc" and not folds:
            raise ValueError(
                "dc folds pixels into channels: the channels of each level must divide four times "
                "those of the level before, and latent_channels must divide those of the last; for "
                "example channels 48, 96, 192 and latent_channels 16"
            )
        return self

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel along each axis, for a VAE from scratch."""
        return int(2 ** (len(self.channels) - (self.architecture == "kl")))


class StudentRecipe(Contract):
    """A denoiser that learns to take several steps of its teacher at once."""

    sampling_steps: int = Field(4, ge=1, le=16, description="steps per image")
    teacher_steps: int = Field(5, ge=1, description="steps of the teacher per step of the student")
    guidance: GuidanceScale = Field(
        GuidanceScale(), description="guidance of the teacher, which the student learns"
    )


class DenoiserRecipe(Contract):
    """The UNet, its condition and its training."""

    conditioning: Literal["concat", "regional", "embedding"] = Field(
        "regional",
        description="concat: the paper's canvases beside the map; regional: attention of each "
        "place to the crops of its own class; embedding: like regional, with an ImageNet feature "
        "vector instead of each crop (for comparison)",
    )
    channels: tuple[Channels, ...] = Field((128, 256, 384), min_length=1)
    layers: int = Field(1, ge=1)
    attention: tuple[bool, ...] = Field(
        (False, True, True), description="whether each level has attention"
    )
    head_width: int = Field(
        32,
        ge=8,
        description="channels of an attention head (regional, embedding); GPUs are faster with 64",
    )
    condition_channels: int = Field(64, ge=4, description="channels of the encoded condition")
    student: StudentRecipe | None = Field(
        None, description="settings of a student of the warm-start model, to sample in few steps"
    )
    steps: int = Field(1000, ge=0)
    batch_size: int = Field(16, ge=1, description="batch size of one process")
    learning_rate: float = Field(2e-4, gt=0)
    warmup: int = Field(100, ge=0)
    ema: float = Field(0.999, ge=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)
    drop_map: float = Field(0.1, ge=0, le=1, description="chance that the map alone is dropped")
    drop_crops: float = Field(
        0.1, ge=0, le=1, description="chance that the crops alone are dropped"
    )
    drop_both: float = Field(0.1, ge=0, le=1, description="chance that both are dropped")
    views: int = Field(
        0,
        ge=0,
        description="number of turned and re-stained views per region; their latents are computed "
        "once and kept (the first 8 have the original staining); 0: new views in every step",
    )
    crop_augment: bool = Field(
        True,
        description="turn and move crops, so that they carry appearance but no layout; False: "
        "leave them where they were cut (the paper)",
    )
    crop_elsewhere: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of augmented crops from another region of the slide; the larger it is, "
        "the less the model follows a given crop",
    )
    crop_min: float = Field(50 / 512, gt=0, le=1, description="smallest crop side / image side")
    crop_max: float = Field(200 / 512, gt=0, le=1, description="largest crop side / image side")
    crop_complexity: float = Field(
        1.0, ge=0, description="α of the crop side d = d_base (1 + α complexity)"
    )

    @model_validator(mode="after")
    def _consistent(self) -> DenoiserRecipe:
        if len(self.attention) != len(self.channels):
            raise ValueError("`attention` needs one entry per entry of `channels`")
        if self.drop_map + self.drop_crops + self.drop_both >= 1:
            raise ValueError("the drop chances must add up to less than 1")
        if self.crop_min > self.crop_max:
            raise ValueError("crop_min is above crop_max")
        if 0 < self.views < 8:
            raise ValueError("views must be 0, or at least 8: the turns in the original staining")
        return self


class LayoutRecipe(Contract):
    """The layout model, which samples label maps of given class shares, and its training."""

    side: int = Field(32, ge=8, le=128, description="cells of a sampled map along each axis")
    channels: tuple[Annotated[int, Field(ge=16, multiple_of=16)], ...] = Field(
        (32, 64, 96), min_length=1, description="channels of the levels"
    )
    steps: int = Field(0, ge=0, description="training steps; 0: the model has no layout model")
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(100, ge=0)
    ema: float = Field(0.995, ge=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _divisible(self) -> LayoutRecipe:
        levels = 2 ** (len(self.channels) - 1)
        if self.side % levels:
            raise ValueError(f"layouts.side {self.side} must be a multiple of {levels}")
        return self


class Recipe(Contract):
    """A training recipe; `services/train/recipes/*.yaml` hold the named ones."""

    name: Name
    size: int = Field(256, ge=32, description="side of the images in pixels")
    vae: VaeRecipe = VaeRecipe()
    denoiser: DenoiserRecipe = DenoiserRecipe()
    layouts: LayoutRecipe = LayoutRecipe()
    student_steps: int = Field(
        0,
        ge=0,
        description="training steps of a few-step student, which 'htd train' makes of the model "
        "and publishes as its next version; 0: none",
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    segment_steps: int = Field(500, ge=1, description="steps between two resumable checkpoints")
    sample_every: int = Field(500, ge=1, description="steps between two sample sheets")

    @property
    def sampling(self) -> Sampling:
        """The default sampling settings of models of this recipe."""
        student = self.denoiser.student
        if student is None:
            return Sampling()
        return Sampling(
            steps=student.sampling_steps, guidance_map=1, guidance_crops=1, first_order=True
        )  # fmt: skip

    def untrained(self) -> Recipe:
        """Return this recipe without training steps, to publish a warm start unchanged.

        The layout model is still trained, if the recipe has one: it belongs to the regions.
        """
        vae = self.vae.model_copy(update={"steps": 0, "decoder_steps": 0})
        denoiser = self.denoiser.model_copy(update={"steps": 0, "views": 0})
        return self.model_copy(update={"vae": vae, "denoiser": denoiser})

    @model_validator(mode="after")
    def _divisible(self) -> Recipe:
        if self.vae.pretrained is None:
            self.check_sides(self.vae.factor)
        if self.layouts.steps and self.layouts.side > self.size:
            raise ValueError(f"layouts.side {self.layouts.side} is above size {self.size}")
        return self

    def check_sides(self, factor: int) -> None:
        """Raise `ValueError` unless all sides fit the levels of the networks.

        Args:
            factor: pixels per latent pixel of the autoencoder.
        """
        total = factor * 2 ** (len(self.denoiser.channels) - 1)
        if self.size % total:
            raise ValueError(
                f"size {self.size} must be a multiple of {total}: the autoencoder makes {factor} "
                f"pixels one, and the denoiser has {len(self.denoiser.channels)} levels; take "
                f"{max(total, self.size - self.size % total)}"
            )
        if (self.vae.steps or self.vae.decoder_steps) and self.vae.crop % factor:
            raise ValueError(
                f"vae.crop {self.vae.crop} must be a multiple of {factor}, the number of pixels "
                "that the autoencoder makes one"
            )
