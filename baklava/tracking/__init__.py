"""The results in MLflow. The files are the truth; MLflow is a copy of them that can be made again at any time.

MLflow is not imported here: it takes seconds, and the workflow asks for the store's address before its first job.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before MLflow is imported: nothing leaves the machine
