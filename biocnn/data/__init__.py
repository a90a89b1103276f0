"""Manifests, readers, augmentation and the shared datamodule."""
