"""Images: slides, label maps, region sets, PNG, augmentations and contact sheets."""
