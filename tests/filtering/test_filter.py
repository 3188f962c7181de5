"""The filter as a whole: its files, its command, and what it does after kills."""

import bz2
import gzip
import json
import lzma
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from command import STORIES, snapshot
from command import fflm as run

import fflm
from fflm import workers
from fflm.errors import FflmError
from fflm.files import COMPRESSIONS
from fflm.filtering import job, lines, parquet
from fflm.filtering.quality import FIGURES, DocumentScorer, figures

GENERATOR = np.random.default_rng(7)
WORDS = ("the", "cat", "dog", "said", "and", ".", "zebra")
TEXTS = [" ".join(GENERATOR.choice(WORDS, size)) for size in GENERATOR.integers(2, 30, 300)]
RECORDS = [{"id": index, "text": text} for index, text in enumerate(TEXTS)]
MODULES = {".gz": gzip, ".bz2": bz2, ".xz": lzma, ".zst": import_module(COMPRESSIONS[".zst"])}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return the folder of an n-gram model."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "text.txt").write_text(STORIES, encoding="utf-8")
    fflm.train_ngram(folder / "text.txt", folder / "small.ngram", order=2)
    return folder / "small.ngram"


@pytest.fixture(scope="module")
def perplexities(model):
    return figures(DocumentScorer.load(model).measure(TEXTS))["perplexity"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Change to an empty folder, in which files are read in many small batches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lines, "BLOCK", 2000)
    monkeypatch.setattr(parquet, "ROWS", 40)
    return tmp_path


def encoded(records):
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def decoded(content):
    return [json.loads(line) for line in content.splitlines()]


def outputs(folder):
    """Return the content of the filtered files."""
    return {name: content for name, content in snapshot(Path(folder)).items() if content and not name.startswith(".filter")}


def test_kept_json_lines_are_unchanged_and_in_order(folder, model, perplexities):
    Path("docs.jsonl").write_bytes(b"".join(b'{ "text":%s, "n": 1.50}\n' % json.dumps(text).encode() for text in TEXTS))
    report = fflm.filter("docs.jsonl", "kept", model, max_perplexity=20, scores="none")
    expected = [
        line for line, value in zip(Path("docs.jsonl").read_bytes().splitlines(), perplexities, strict=True) if value <= 20
    ]
    assert Path("kept/docs.jsonl").read_bytes().splitlines() == expected
    assert 0 < len(expected) < len(TEXTS)
    assert (report.documents, report.kept, report.broken) == (len(TEXTS), len(expected), {})


def test_records_get_the_scores_of_fflm_score(folder, model):
    Path("docs.jsonl").write_bytes(encoded(RECORDS[:20]))
    fflm.filter("docs.jsonl", "scored", model)
    loaded = fflm.load(model)
    for before, after in zip(RECORDS, decoded(Path("scored/docs.jsonl").read_bytes()), strict=False):
        score = loaded.score(before["text"])
        assert {**before, "fflm_tokens": score.tokens}.items() <= after.items()
        assert after["fflm_perplexity"] == pytest.approx(score.perplexity, rel=1e-4)
        assert after["fflm_bits_per_character"] == pytest.approx(score.bits_per_character, abs=1e-3)
        assert after["fflm_oov_rate"] == pytest.approx(score.oov_rate, abs=1e-4)


def test_bits_per_byte_count_bytes_of_utf8(model):
    measures = DocumentScorer.load(model).measure(["the cät"])
    assert (measures["characters"][0], measures["bytes"][0]) == (8, 9)


@pytest.mark.parametrize("suffix", ["", *COMPRESSIONS])
def test_compressed_files_are_read_and_written(folder, model, suffix):
    compress, decompress = (bytes, bytes) if not suffix else (MODULES[suffix].compress, MODULES[suffix].decompress)
    Path(f"docs.jsonl{suffix}").write_bytes(compress(encoded(RECORDS)))
    Path(f"empty.txt{suffix}").write_bytes(compress(b""))
    fflm.filter([f"docs.jsonl{suffix}", f"empty.txt{suffix}"], "kept", model, scores="beside")
    assert decoded(decompress(Path(f"kept/docs.jsonl{suffix}").read_bytes())) == RECORDS
    beside = decoded(decompress(Path(f"kept/docs.scores.jsonl{suffix}").read_bytes()))
    assert [each["record"] for each in beside] == list(range(1, len(RECORDS) + 1))
    assert set(beside[0]) == {"record", *FIGURES}
    assert decompress(Path(f"kept/empty.txt{suffix}").read_bytes()) == b""


def test_share_to_keep_has_the_lowest_perplexities_of_all_files(folder, model, perplexities):
    Path("in/sub").mkdir(parents=True)
    Path("in/a.jsonl").write_bytes(encoded(RECORDS[:100]))
    Path("in/sub/b.txt").write_text("\n".join(TEXTS[100:]) + "\n")
    report = fflm.filter("in", "kept", model, keep=0.3)
    kept = [each["text"] for each in decoded(Path("kept/a.jsonl").read_bytes())] + Path("kept/sub/b.txt").read_text().splitlines()
    best = sorted(perplexities)[: round(0.3 * len(TEXTS))]
    assert kept == [text for text, value in zip(TEXTS, perplexities, strict=True) if value <= best[-1]]
    assert report.threshold == best[-1]


def test_parquet_keeps_columns_and_order(folder, model, perplexities):
    table = pyarrow.Table.from_pylist(RECORDS).replace_schema_metadata({"made": "by hand"})
    pyarrow.parquet.write_table(table, "docs.parquet", row_group_size=64)
    fflm.filter("docs.parquet", "kept", model, max_perplexity=20)
    kept = pyarrow.parquet.read_table("kept/docs.parquet")
    assert kept.select(["id", "text"]).to_pylist() == [
        record for record, value in zip(RECORDS, perplexities, strict=True) if value <= 20
    ]
    assert kept.column("fflm_perplexity").to_pylist() == [round(value, 4) for value in perplexities if value <= 20]
    assert kept.schema.metadata[b"made"] == b"by hand"
    fflm.filter("docs.parquet", "unchanged", model, scores="none")
    assert pyarrow.parquet.read_table("unchanged/docs.parquet").equals(table)


BROKEN = {
    b'{"text": ': "not JSON",
    b"[1]": "not a JSON object",
    b'{"body": "a cat"}': "no field 'text'",
    b'{"text": null}': "the field 'text' is not a string",
    b'{"text": "\xff"}': "not UTF-8 at byte 10",
    b'{"text": "a", "b": "\xff"}': "not UTF-8 at byte 20",
    b'{"a": %s}' % (b"[" * 100_000): "nested too deeply",
}


def test_broken_records_are_counted_named_and_left_out(folder, model):
    good = encoded(RECORDS[:1]).strip()
    content = [good, b"", *BROKEN, b'{"text": "a \\ud800 cat", "x": NaN}', good]
    Path("docs.jsonl").write_bytes(b"\n".join(content))
    report = fflm.filter("docs.jsonl", "kept", model)
    places = [f"{Path('docs.jsonl').absolute()}:{number}" for number in range(3, 3 + len(BROKEN))]
    assert list(report.broken) == places
    assert all(reason in found for reason, found in zip(BROKEN.values(), report.broken.values(), strict=True))
    kept = decoded(Path("kept/docs.jsonl").read_bytes())
    assert [each["text"] for each in kept] == [TEXTS[0], "a \ud800 cat", TEXTS[0]]


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "the cat",  "price": 1.10, "id": 12345678901234567890.10}',
        b'\xef\xbb\xbf{"text":"the cat","id":12345678901234567890.10} \r',
        b'{"x": NaN, "text": "a \\ud800 cat", "large": 1e400, "twice": 1, "twice": 2}',
    ],
)
def test_values_of_records_remain_as_they_are_written(folder, model, line):
    Path("docs.jsonl").write_bytes(line + b"\n")
    fflm.filter("docs.jsonl", "kept", model)
    scored = Path("kept/docs.jsonl").read_bytes()
    assert scored.startswith(line.removeprefix(b"\xef\xbb\xbf").strip().removesuffix(b"}") + b',"fflm_')
    assert json.loads(scored)["fflm_tokens"] > 0
    fflm.filter("kept/docs.jsonl", "again", model)  # which has the fields already
    again, first = json.loads(Path("again/docs.jsonl").read_bytes()), json.loads(scored)
    assert again.keys() == first.keys()
    assert again["fflm_perplexity"] == first["fflm_perplexity"]


def test_broken_lines_of_text_and_rows_of_parquet_are_left_out(folder, model, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST", 3000)
    Path("docs.txt").write_bytes(b"\xef\xbb\xbfthe cat\n\n\xff\n" + b"a " * 9000 + b"\nthe dog")
    report = fflm.filter("docs.txt", "kept", model)
    assert Path("kept/docs.txt").read_bytes() == b"\xef\xbb\xbfthe cat\nthe dog\n"
    assert [place.rpartition(":")[2] for place in report.broken] == ["3", "4"]
    assert report.documents == 2
    column = pyarrow.array([b"the cat", None, b"\xff"], pyarrow.binary()).view(pyarrow.utf8())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), "docs.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["the cat"]}), "other.parquet")
    report = fflm.filter(["docs.parquet", "other.parquet"], "rows", model)
    assert list(report.broken.values()) == [
        "the column 'text' is not a string",
        "not UTF-8 at byte 0",
        "no column 'text'",
    ]
    assert report.kept == 1


def test_document_without_words_is_kept_only_without_conditions(folder, model):
    Path("docs.jsonl").write_bytes(encoded([{"text": ""}, {"text": "the cat"}]))
    assert fflm.filter("docs.jsonl", "scored", model).kept == 2
    assert decoded(Path("scored/docs.jsonl").read_bytes())[0]["fflm_perplexity"] is None
    report = fflm.filter("docs.jsonl", "kept", model, max_perplexity=1e9)
    assert (report.kept, report.blank) == (1, 1)


@pytest.mark.parametrize(("condition", "figure"), [({"min_perplexity": 20}, "perplexity"), ({"max_oov": 0.1}, "oov_rate")])
def test_conditions_limit_scores(folder, model, condition, figure):
    Path("docs.jsonl").write_bytes(encoded(RECORDS))
    report = fflm.filter("docs.jsonl", "kept", model, **condition)
    values = [each[f"fflm_{figure}"] for each in decoded(Path("kept/docs.jsonl").read_bytes())]
    assert 0 < report.kept < len(TEXTS)
    assert min(values) >= 20 if "min_perplexity" in condition else max(values) <= 0.1


def test_urls_are_read_and_written(folder, model):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/in/a.jsonl": encoded(RECORDS[:50]), "/in/sub/b.jsonl.gz": gzip.compress(encoded(RECORDS[50:]))})
    report = fflm.filter("memory://in", "memory://out", model, scores="none")
    assert decoded(memory.cat("/out/a.jsonl")) == RECORDS[:50]
    assert decoded(gzip.decompress(memory.cat("/out/sub/b.jsonl.gz"))) == RECORDS[50:]
    assert report.documents == len(RECORDS)
    fflm.filter("memory://in/*.jsonl", "local", model, scores="none")
    assert list(outputs("local")) == ["a.jsonl"]
    with pytest.raises(FflmError, match="cannot read memory://none"):
        fflm.filter("memory://none/a.jsonl", "other", model)


KILLED = """
import os, signal, sys
import fflm
from fflm.filtering import job, journal, lines, parquet
job.SAVE_SECONDS, lines.BLOCK, parquet.ROWS = 0, 2000, 40

def killing(function):
    def call(*arguments):
        global calls
        calls += 1
        if calls == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call

def filter():
    global calls
    calls = 0
    journal.Journal.write, job.publish = killing(journal.Journal.write), killing(job.publish)
    if os.path.exists("kept/.filter"):
        fflm.resume_filter("kept", processes=1)
    else:
        fflm.filter("in", "kept", sys.argv[1], keep=0.5, processes=1)

def attempts():
    fflm.filter("in", "whole", sys.argv[1], keep=0.5, processes=1)  # which also loads the kernels
    while True:
        process = os.fork()
        if not process:
            filter()
            os._exit(0)
        _, status = os.waitpid(process, 0)
        yield status
        if not status:
            return
        with open("kept/.filter/journal.jsonl", "ab") as file:
            file.write(b'{"writes"')
        for name in os.listdir("kept/.filter"):
            if name.endswith((".kept", ".scores", ".measures")):
                with open(f"kept/.filter/{name}", "ab") as file:
                    file.write(b"written after the last line of the journal")

print(*attempts())
"""
"""A program whose child processes filter, and are killed at their seventh line of the journal or file, until one ends."""


def write_collection():
    """Write a folder of files in all formats."""
    Path("in").mkdir()
    Path("in/a.jsonl.gz").write_bytes(gzip.compress(encoded(RECORDS[:150])))
    Path("in/b.txt").write_text("\n".join(TEXTS[150:250]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS[250:]), "in/c.parquet")


def test_killed_filter_resumes_to_the_same_bytes(folder, model):
    """After each kill, the last line of the journal is torn, and the files in progress are longer than the journal says."""
    write_collection()
    done = subprocess.run([sys.executable, "-c", KILLED, model], check=True, capture_output=True, text=True)
    *kills, end = map(int, done.stdout.split())
    assert len(kills) >= 5
    assert set(kills) == {signal.SIGKILL}
    assert end == 0
    assert outputs("kept") == outputs("whole")
    assert fflm.resume_filter("kept").kept == fflm.resume_filter("whole").kept


def test_interrupted_filter_resumes_to_the_same_bytes(folder, model, monkeypatch):
    write_collection()
    fflm.filter("in", "whole", model, processes=1)
    monkeypatch.setattr(job, "SAVE_SECONDS", 0)

    def stop(progress):
        if progress.fraction > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fflm.filter("in", "kept", model, processes=1, progress=stop)
    assert outputs("kept") != outputs("whole")
    fractions = []
    fflm.resume_filter("kept", processes=1, progress=lambda progress: fractions.append(progress.fraction))
    assert outputs("kept") == outputs("whole")
    assert min(fractions) > 0.3


def test_changed_file_is_filtered_anew_and_changed_model_is_refused(folder, model, monkeypatch):
    monkeypatch.setattr(job, "SAVE_SECONDS", 0)
    shutil.copytree(model, "copy.ngram")
    Path("docs.jsonl").write_bytes(encoded(RECORDS))

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fflm.filter("docs.jsonl", "kept", "copy.ngram", processes=1, progress=stop)
    Path("docs.jsonl").write_bytes(encoded(RECORDS[:50]))
    assert fflm.resume_filter("kept").documents == 50
    fflm.load("copy.ngram").quantize().save(Path("copy.ngram"))
    with pytest.raises(FflmError, match="has changed since the job began"):
        fflm.resume_filter("kept")


def interrupt_after_scoring(model):
    """Start to filter docs.jsonl into the folder kept, and interrupt the filter when all documents have scores."""

    def stop(progress):
        if progress.writes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fflm.filter("docs.jsonl", "kept", model, keep=0.5, processes=1, progress=stop)


def test_file_that_changes_after_it_was_scored_is_refused(folder, model):
    Path("docs.jsonl").write_bytes(encoded(RECORDS))
    interrupt_after_scoring(model)
    Path("docs.jsonl").write_bytes(encoded(RECORDS[:50]))
    with pytest.raises(FflmError, match=r"docs\.jsonl has changed since it was scored: restore it, or filter again into"):
        fflm.resume_filter("kept")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": 3}, "`inputs` must be a path, not 3"),
        ({"inputs": [None]}, "`inputs` must be a path, not None"),
        ({"inputs": []}, "there is no path or URL of documents"),
        ({"output": ""}, "`output` must be a path, not ''"),
        ({"processes": 0}, "`processes` must be an integer from 1"),
        ({"progress": 3}, "`progress` must be a function or None"),
    ],
)
def test_arguments_of_other_types_are_refused(folder, model, changes, message):
    Path("docs.jsonl").write_bytes(encoded(RECORDS[:5]))
    with pytest.raises(FflmError, match=re.escape(message)):
        fflm.filter(**{"inputs": "docs.jsonl", "output": "new", "model": model, **changes})
    assert not Path("new").exists()
    with pytest.raises(FflmError, match="`output` must be a path, not 3"):
        fflm.resume_filter(3)


def test_moved_filter_resumes_where_it_is(folder, model):
    Path("docs.jsonl").write_bytes(encoded(RECORDS))

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fflm.filter("docs.jsonl", "kept", model, processes=1, progress=stop)
    Path("kept").rename("moved")
    assert fflm.resume_filter("moved").output == str(folder / "moved")
    assert len(decoded(Path("moved/docs.jsonl").read_bytes())) == len(RECORDS)
    assert not Path("kept").exists()
    Path("moved").rename("again")
    assert fflm.resume_filter("again").output == str(folder / "again")


def test_existing_empty_folder_is_filled(folder, model):
    Path("docs.jsonl").write_bytes(encoded(RECORDS))
    Path("kept").mkdir()
    assert fflm.filter("docs.jsonl", "kept", model).kept == len(RECORDS)


def test_numbers_that_json_lacks_are_kept(folder, model):
    lines = [
        '{"text":"cat","x":NaN,"y":[-Infinity,123456789012345678901234567890]}',
        '{"text":"é","x":NaN}',
        '{"text":"\\ud800"}',
    ]
    Path("docs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    fflm.filter("docs.jsonl", "kept", model)
    for line, kept in zip(lines, Path("kept/docs.jsonl").read_text(encoding="utf-8").splitlines(), strict=True):
        assert kept.startswith(line.removesuffix("}") + ',"fflm_perplexity":')


@pytest.mark.parametrize(("name", "content"), [("report.json", "{}"), ("000000.measures", ""), ("journal.jsonl", "{}\n")])
def test_damaged_files_of_a_filter_are_refused(folder, model, name, content):
    Path("docs.jsonl").write_bytes(encoded(RECORDS))
    interrupt_after_scoring(model)
    Path("kept/.filter", name).write_text(content)
    with pytest.raises(FflmError, match=f"{name}.* is damaged .*: filter again into another folder"):
        fflm.resume_filter("kept")


@pytest.mark.slow
def test_processes_write_the_same_bytes(folder, model, monkeypatch):
    write_collection()
    fflm.filter("in", "one", model, keep=0.5, processes=1)
    monkeypatch.setattr(workers, "SERIAL_SECONDS", -1)
    monkeypatch.setattr(workers, "PATIENCE", 60)
    fflm.filter("in", "two", model, keep=0.5, processes=2)
    assert outputs("one") == outputs("two")


def test_command_reports_and_resumes(folder, model):
    Path("docs.jsonl").write_bytes(encoded(RECORDS) + b"{\n")
    done = run("filter", "docs.jsonl", "-m", model, "-o", "kept", "--keep", "30%", folder=folder)
    assert done.returncode == 0
    assert "docs.jsonl:301: not JSON" in done.stderr
    assert "documents       300 (files: 1)\nkept            90 (30.0%, perplexity up to " in done.stdout
    again = run("filter", "--resume", "kept", "--json", "-q", folder=folder)
    assert json.loads(again.stdout)["kept"] == 90
    assert again.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("docs.jsonl", "-o", "old"), "old exists: choose another folder"),
        (("docs.jsonl", "-o", "made"), "made was made by a filter: resume it with `fflm filter --resume made`"),
        (("missing.jsonl", "-o", "new"), "cannot read missing.jsonl: No such file or directory"),
        (("docs.csv", "-o", "new"), "docs.csv does not say the format of the file: give --format"),
        (("docs.jsonl", "docs.jsonl", "-o", "new"), "would both be written to docs.jsonl"),
        (("docs.jsonl", "-o", "new", "--keep", "30%", "--max-perplexity", "9"), "--keep and --max-perplexity both limit"),
        (("docs.jsonl", "-o", "new", "--keep", "x"), "'x' is not a share: write 30% or 0.3"),
        (("--resume", "old"), "old was not made by a filter"),
        (("--resume", "made", "--keep", "30%"), "a resumed filter keeps its inputs and settings: leave out --keep"),
        (("-o", "new"), "give documents and -o FOLDER, or --resume a filter"),
        (("-", "-o", "new"), "- is not a file that can be read again when a filter is resumed: write its content to a file"),
        (("docs.jsonl", "-o", "none://bucket/new"), "cannot use none://bucket/new: Protocol not known: none"),
        (("docs.jsonl", "-o", "new", "--fast"), "only a network can score fast"),
        (("", "-o", "new"), "there is no path or URL of documents: give at least one, and no empty one"),
        (("pipe.jsonl", "-o", "new"), "pipe.jsonl is not a file that can be read again"),
        (
            ("docs.jsonl", "docs.txt", "-o", "new", "--scores", "beside"),
            "docs.jsonl and docs.txt would both be written to docs.scores.jsonl",
        ),
        (("docs.txt", "docs.scores.jsonl", "-o", "new"), "would both be written to docs.scores.jsonl"),
    ],
)
def test_command_refuses_in_one_line(folder, model, arguments, message):
    Path("docs.jsonl").write_bytes(encoded(RECORDS[:5]))
    for name in ("docs.csv", "docs.txt", "docs.scores.jsonl"):
        Path(name).touch()
    os.mkfifo("pipe.jsonl")
    Path("old").mkdir()
    Path("old/file").touch()
    fflm.filter("docs.jsonl", "made", model)
    done = run("filter", *arguments, *(() if "--resume" in arguments else ("-m", model)), folder=folder)
    usage = ("both limit", "is not a share", "leave out --keep", "give documents")
    assert done.returncode == (2 if any(part in message for part in usage) else 1)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path("new").exists()
    assert not Path("new.filter").exists()
