"""The choice of a format."""

from fflm.files import split_compression
from fflm.filtering.lines import JsonLines, TextLines
from fflm.filtering.records import Format
from fflm.filtering.settings import FilterSettings


def make_format(settings: FilterSettings, name: str, target: str) -> Format:
    """Return the format of a file, which will be written to a path, whose suffix says how it is compressed."""
    format_ = settings.format_of(name)
    if format_ == "parquet":
        from fflm.filtering.parquet import Parquet

        return Parquet(settings.field)
    return (JsonLines if format_ == "jsonl" else TextLines)(settings.field, split_compression(target)[1])
