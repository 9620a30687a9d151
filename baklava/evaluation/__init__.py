"""Answers the samples of a task in every cell, and measures memory and speed."""
