"""Tasks: text in, score out. One file per family, whose import below registers it; `conf/task/` sets parameters."""

from baklava.system.registry import families_of
from baklava.tasks.base import Sample as Sample
from baklava.tasks.base import Task as Task
from baklava.tasks.graphwalks import GraphWalks as GraphWalks
from baklava.tasks.infinitebench import InfiniteBench as InfiniteBench
from baklava.tasks.json_kv import JsonKeyValue as JsonKeyValue
from baklava.tasks.jsonl import JsonlTask as JsonlTask
from baklava.tasks.longbench import LongBench as LongBench
from baklava.tasks.longbench_v2 import LongBenchV2 as LongBenchV2
from baklava.tasks.math_words import MathWords as MathWords
from baklava.tasks.mrcr import MRCR as MRCR
from baklava.tasks.needle_threading import NeedleThreading as NeedleThreading
from baklava.tasks.nolima import NoLiMa as NoLiMa
from baklava.tasks.path_traversal import PathTraversal as PathTraversal
from baklava.tasks.perplexity import Continuation as Continuation
from baklava.tasks.ruler.cwe import CommonWords as CommonWords
from baklava.tasks.ruler.fwe import FrequentWords as FrequentWords
from baklava.tasks.ruler.needle_grid import NeedleGrid as NeedleGrid
from baklava.tasks.ruler.niah import NeedleInHaystack as NeedleInHaystack
from baklava.tasks.ruler.qa import RulerQa as RulerQa
from baklava.tasks.ruler.vt import VariableTracking as VariableTracking

FAMILIES: dict[str, type[Task]] = families_of(Task)
