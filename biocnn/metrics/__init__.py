"""Metrics: plain functions of arrays, and thin torchmetrics classes that hold state across ranks."""
