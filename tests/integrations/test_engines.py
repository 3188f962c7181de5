"""Engines keep the documents that `fflm filter` keeps; what needs more than the extra `integrations` is run by a benchmark."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import STORIES

import fflm
from fflm.errors import FflmError
from fflm.integrations.texts import BatchFilter, TextFilter

# Ray reads settings of its own that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")

GENERATOR = np.random.default_rng(7)
TEXTS = [" ".join(GENERATOR.choice(["the", "cat", "dog", "said", ".", "zebra"], size)) for size in GENERATOR.integers(2, 30, 200)]
CONDITIONS = {"max_perplexity": 20, "max_oov": 0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a model, a collection in two files, and the ids that `fflm filter` keeps."""
    folder = tmp_path_factory.mktemp("engines")
    (folder / "text.txt").write_text(STORIES, encoding="utf-8")
    fflm.train_ngram(folder / "text.txt", folder / "small.ngram", order=2)
    (folder / "in").mkdir()
    records = [{"id": str(index), "text": text} for index, text in enumerate(TEXTS)]
    for name, part in (("a", records[:120]), ("b", records[120:])):
        (folder / "in" / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in part))
    fflm.filter(folder / "in", folder / "kept", folder / "small.ngram", **CONDITIONS)
    return folder


def kept_records(folder):
    return [json.loads(line) for name in "ab" for line in (folder / "kept" / f"{name}.jsonl").read_text().splitlines()]


def test_batch_filter_keeps_rows_of_columns_and_records(folder):
    batches = BatchFilter(folder / "small.ngram", **CONDITIONS)
    ids = [str(index) for index in range(len(TEXTS))]
    for columns in ({"id": ids, "text": TEXTS}, {"id": np.array(ids), "text": np.array(TEXTS, object)}):
        result = batches(columns)
        found = [dict(zip(result, row, strict=True)) for row in zip(*result.values(), strict=True)]
        assert found == kept_records(folder)
    records = ({"id": id_, "text": text} for id_, text in zip(ids, TEXTS, strict=True))
    assert batches.records(records) == kept_records(folder)


def test_text_filter_leaves_out_what_is_not_text_and_refuses_a_share(folder):
    kept, scores = TextFilter(folder / "small.ngram").judge(["the cat", None, ""])
    assert kept.tolist() == [True, False, True]
    assert scores[1]["fflm_perplexity"] is scores[2]["fflm_perplexity"] is None
    with pytest.raises(FflmError, match="needs the whole collection"):
        TextFilter(folder / "small.ngram", keep=0.3)


@pytest.mark.integrations
def test_datatrove_keeps_the_documents_of_the_filter(folder, tmp_path):
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    from fflm.integrations.datatrove import PerplexityFilter

    steps = [
        JsonlReader(str(folder / "in")),
        PerplexityFilter(folder / "small.ngram", batch_size=32, **CONDITIONS),
        JsonlWriter(str(tmp_path / "out"), compression=None),
    ]
    LocalPipelineExecutor(steps, tasks=2, workers=2, logging_dir=str(tmp_path / "log")).run()
    found = [json.loads(line) for path in sorted(Path(tmp_path, "out").iterdir()) for line in path.read_text().splitlines()]
    assert [record["id"] for record in found] == [record["id"] for record in kept_records(folder)]
    assert found[0]["metadata"]["fflm_perplexity"] == kept_records(folder)[0]["fflm_perplexity"]


@pytest.mark.integrations
def test_ray_data_keeps_the_documents_of_the_filter(folder):
    import ray

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        rows = ray.data.read_json(str(folder / "in"))
        options = {"field": "text", **CONDITIONS}
        kept = rows.map_batches(
            BatchFilter, fn_constructor_args=[str(folder / "small.ngram")], fn_constructor_kwargs=options, concurrency=2
        )
        found = sorted(kept.take_all(), key=lambda record: int(record["id"]))
    finally:
        ray.shutdown()
    assert [(each["id"], each["fflm_perplexity"]) for each in found] == [
        (each["id"], each["fflm_perplexity"]) for each in kept_records(folder)
    ]
