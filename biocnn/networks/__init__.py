"""Networks: images in, logits out; no losses and no Lightning."""
