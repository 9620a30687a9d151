"""Tasks: text in, score out. One file per family; `conf/task/*.yaml` sets the parameters."""

from baklava.tasks.base import Sample, Task
from baklava.tasks.niah import NeedleInHaystack
from baklava.tasks.vt import VariableTracking

FAMILIES: dict[str, type[Task]] = {family.family: family for family in (NeedleInHaystack, VariableTracking)}

__all__ = ["FAMILIES", "NeedleInHaystack", "Sample", "Task", "VariableTracking"]
