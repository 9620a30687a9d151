"""What each stage needs, as typed data: a job is a slice of the configuration and the paths of its files."""

from baklava.experiment.jobs.analysis import ClaimsJob, SummarizeJob
from baklava.experiment.jobs.base import Job, MethodBudgets
from baklava.experiment.jobs.calibration import CalibrateJob
from baklava.experiment.jobs.evaluation import EvaluateJob, MeasureJob, MergeJob, Shard
from baklava.experiment.jobs.profiling import CurvesJob, ProfileJob
from baklava.experiment.jobs.reports import PageJob, ReportJob, ResultFiles, TrackJob
from baklava.experiment.jobs.search import AllocateJob
from baklava.experiment.jobs.validation import VALIDATION, ValidateJob

__all__ = [
    "VALIDATION",
    "AllocateJob",
    "CalibrateJob",
    "ClaimsJob",
    "CurvesJob",
    "EvaluateJob",
    "Job",
    "MeasureJob",
    "MergeJob",
    "MethodBudgets",
    "PageJob",
    "ProfileJob",
    "ReportJob",
    "ResultFiles",
    "Shard",
    "SummarizeJob",
    "TrackJob",
    "ValidateJob",
]
