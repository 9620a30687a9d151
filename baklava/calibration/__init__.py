"""Calibration prompts: texts with a known continuation."""
