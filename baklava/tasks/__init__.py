"""Tasks: text in, score out. One file per family; `conf/task/` sets the parameters."""

from baklava.tasks.base import Sample, Task
from baklava.tasks.jsonl import JsonlTask
from baklava.tasks.longbench import LongBench
from baklava.tasks.perplexity import Continuation
from baklava.tasks.ruler.cwe import CommonWords
from baklava.tasks.ruler.fwe import FrequentWords
from baklava.tasks.ruler.needle_grid import NeedleGrid
from baklava.tasks.ruler.niah import NeedleInHaystack
from baklava.tasks.ruler.qa import RulerQa
from baklava.tasks.ruler.vt import VariableTracking

_ALL: tuple[type[Task], ...] = (
    CommonWords,
    Continuation,
    FrequentWords,
    JsonlTask,
    LongBench,
    NeedleGrid,
    NeedleInHaystack,
    RulerQa,
    VariableTracking,
)
FAMILIES: dict[str, type[Task]] = {task.family: task for task in _ALL}

__all__ = ["FAMILIES", "NeedleInHaystack", "Sample", "Task", "VariableTracking"]
