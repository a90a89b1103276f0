"""LightningModules, one class a file."""
