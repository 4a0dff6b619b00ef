"""Deploy: a trained model version → models that a Triton server serves."""
