"""Formats in which other projects keep budgets. One file per project; a line in the table registers a format."""

from baklava.allocation.formats.base import Expressed as Expressed
from baklava.allocation.formats.base import Format as Format
from baklava.allocation.formats.base import Options as Options
from baklava.allocation.formats.compaction import Compaction
from baklava.allocation.formats.duo import DuoFormat
from baklava.allocation.formats.layer_windows import TrtllmWindows, VllmLayerTypes
from baklava.allocation.formats.lu_kv import LuKV
from baklava.allocation.formats.our_json import Json, Kvpress
from baklava.allocation.formats.tangram import Tangram

FORMATS: dict[str, Format] = {
    kind.name: kind
    for kind in (Json(), DuoFormat(), Compaction(), Tangram(), LuKV(), TrtllmWindows(), VllmLayerTypes(), Kvpress())
}
