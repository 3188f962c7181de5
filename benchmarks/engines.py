"""Engines that process collections keep the documents that `fflm filter` keeps.

    python benchmarks/engines.py [OUT.json [ENGINE ...]]

runs the engines that are installed, or those that are named, with two workers each, on a collection of which a third is shuffled,
and adds what it has verified to the recorded results.
"""

import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import fflm
from fflm.filtering.quality import figures
from fflm.integrations.texts import BatchFilter, TextFilter

ROOT = Path(__file__).parents[1]
LIMIT = 60.0
Records = list[dict[str, str]]


def collection() -> Records:
    """Return paragraphs of the stories, of which a third has its words shuffled."""
    lines = [line for line in (ROOT / "corpora/stories.txt").read_text(encoding="utf-8").split("\n") if line.strip()]
    generator = random.Random(1)
    records = []
    for index in range(0, len(lines), 3):
        words = " ".join(lines[index : index + 3]).split()
        if index % 9 == 0:
            generator.shuffle(words)
        records.append({"id": str(index), "text": " ".join(words)})
    return records


def dask_bag(model: Path, records: Records) -> set[str]:
    import dask.bag

    bag = dask.bag.from_sequence(records, npartitions=4)
    kept = bag.map_partitions(BatchFilter(model, max_perplexity=LIMIT).records).compute(scheduler="processes", num_workers=2)
    return {record["id"] for record in kept}


def datasets_map(model: Path, records: Records) -> set[str]:
    import datasets

    rows = datasets.Dataset.from_list(records)
    return set(rows.map(BatchFilter(model, max_perplexity=LIMIT), batched=True, num_proc=2)["id"])


def ray_data(model: Path, records: Records) -> set[str]:
    import ray

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    rows = ray.data.from_items(records, override_num_blocks=4)
    arguments = {"fn_constructor_args": [str(model)], "fn_constructor_kwargs": {"max_perplexity": LIMIT}}
    kept = {row["id"] for row in rows.map_batches(BatchFilter, concurrency=2, **arguments).take_all()}
    ray.shutdown()
    return kept


def datatrove(model: Path, records: Records) -> set[str]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    from fflm.integrations.datatrove import PerplexityFilter

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for part in range(2):
            lines = "".join(json.dumps(record) + "\n" for record in records[part::2])
            (folder / f"in/{part}.jsonl").write_text(lines, encoding="utf-8")
        ends = JsonlReader(str(folder / "in")), JsonlWriter(str(folder / "out"), compression=None)
        steps = [ends[0], PerplexityFilter(model, max_perplexity=LIMIT), ends[1]]
        LocalPipelineExecutor(steps, tasks=2, workers=2, logging_dir=str(folder / "log")).run()
        return {json.loads(line)["id"] for path in (folder / "out").iterdir() for line in path.read_text().splitlines()}


def spark(model: Path, records: Records) -> set[str]:
    from pyspark.sql import SparkSession

    from fflm.integrations.spark import perplexity_column

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    session = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    frame = session.createDataFrame([(record["id"], record["text"]) for record in records], ["id", "text"]).repartition(2)
    perplexity = perplexity_column(model)
    kept = {row.id for row in frame.where(perplexity("text") <= LIMIT).select("id").collect()}
    session.stop()
    return kept


def data_juicer(model: Path, records: Records) -> set[str]:
    from data_juicer.core.data import NestedDataset

    from fflm.integrations.data_juicer import FflmPerplexityFilter

    operator = FflmPerplexityFilter(str(model), max_perplexity=LIMIT, num_proc=2)
    return set(NestedDataset.from_list(records).process([operator])["id"])


def nemo_curator(model: Path, records: Records) -> set[str]:
    from fflm.integrations.nemo_curator import PerplexityFilter

    own = PerplexityFilter(model, max_perplexity=LIMIT)
    own.load_model()
    return {record["id"] for record in records if own.keep_document(own.score_document(record["text"]))}


ENGINES: dict[str, tuple[str, Callable[[Path, Records], set[str]]]] = {
    "Dask": ("dask", dask_bag),
    "Hugging Face datasets": ("datasets", datasets_map),
    "Ray Data": ("ray", ray_data),
    "datatrove": ("datatrove", datatrove),
    "Spark": ("pyspark", spark),
    "data-juicer": ("py-data-juicer", data_juicer),
    "NeMo Curator, the filter alone": ("nemo-curator", nemo_curator),
}


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks/results/engines.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "stories.ngram"
        fflm.train_ngram(ROOT / "corpora/stories.txt", model)
        records = collection()
        (folder / "docs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        fflm.filter(folder / "docs.jsonl", folder / "kept", model, max_perplexity=LIMIT)
        expected = {json.loads(line)["id"] for line in (folder / "kept/docs.jsonl").read_text().splitlines()}
        measured = figures(TextFilter(model).measure([record["text"] for record in records]))["perplexity"]
        assert len(expected) == (measured <= LIMIT).sum()
        for engine in sys.argv[2:] or ENGINES:
            package, run = ENGINES[engine]
            try:
                found = version(package)
            except PackageNotFoundError:
                continue
            if run(model, records) != expected:
                sys.exit(f"{engine} keeps other documents than `fflm filter`")
            about = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "pyarrow": version("pyarrow")}
            results[engine] = {"version": found, **about, "documents": len(records), "kept": len(expected)}
            print(engine, results[engine], flush=True)
            path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
