"""Copies the results into MLflow. The files are the truth; the copy can be made again at any time.

This module does not import MLflow, which takes seconds: the workflow asks for the store's address before its first job.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before MLflow is imported: nothing leaves the machine
