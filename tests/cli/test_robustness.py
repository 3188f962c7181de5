"""Invalid and damaged input to commands: each gives an error of one line, and changes no file."""

import gzip
import io
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from command import FFLM, SMALL, STORIES, fflm, installed_fflm, snapshot

from fflm import files
from fflm.cli import main
from fflm.files import locked_folder


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory):
    """Make a folder with a valid text, invalid ones, a model and a tokenized text."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text.txt").write_text(STORIES, encoding="utf-8")
    assert fflm("train", "text.txt", *SMALL, "--epochs", 1, "--test", "5%", folder=folder).returncode == 0
    assert fflm("tokenize", "text.txt", "-o", "text.ids", folder=folder).returncode == 0
    (folder / "empty.txt").touch()
    (folder / "blank.txt").write_text("\n \n\n")
    (folder / "word.txt").write_text("word")
    (folder / "words.txt").write_text("these few words do not fill a window of ten\n" * 2)
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (folder / "latin.txt").write_bytes("Ein schöner Tag für Bären. ".encode("latin-1") * 50)
    (folder / "short.gz").write_bytes(gzip.compress(STORIES.encode(), mtime=0)[:-20])
    (folder / "packed.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    (folder / "utf16.txt").write_bytes(STORIES.encode("utf-16-le"))
    (folder / "folder").mkdir()
    return folder


@pytest.fixture
def folder(prepared_folder, tmp_path, monkeypatch):
    """Copy the prepared folder, and make the copy the current folder."""
    copy = tmp_path / "copy"
    shutil.copytree(prepared_folder, copy)
    monkeypatch.chdir(copy)
    return copy


def run_refused(folder, *arguments):
    """Run a command that must fail with one line and change no file; return the line."""
    before = snapshot(folder)
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    assert snapshot(folder) == before
    return result.stderr


# Texts.

TEXTS = [
    (["empty.txt"], "there are no words in empty.txt"),
    (["blank.txt", "--no-line-ends"], "there are no words in blank.txt"),
    (["word.txt"], ""),
    (["word.txt", "--valid", "0", "--min-count", "1"], "too few for a window"),
    (["words.txt", "--valid", "0", "--window", "50"], "the train text has 22 tokens, too few for a window of 50"),
    (["text.txt", "--window", "100"], "the valid text has .* tokens, too few for a window of 100: .*--valid 0"),
    (["text.txt", "--window", "1000000"], "too few for a window of 1000000"),
    (["text.txt", "--window", "10000000000"], "10000000000 is not in the range 1<=x<=1000000"),
    (["binary.txt"], "binary.txt holds NUL bytes"),
    (["latin.txt"], r"latin.txt is not utf-8 at byte 7 .*--encoding"),
    (["text.txt", "--encoding", "klingon"], "no encoding 'klingon'"),
    (["missing.txt"], "cannot read missing.txt: No such file or directory"),
    (["text.txt/below"], "cannot read text.txt/below: Not a directory"),
    (["x" * 300], "File name too long"),
    (["folder"], "no files in the folder"),
    (["short.gz"], "damaged or truncated gzip file"),
    (["packed.zip"], "packed.zip is in the format zip, which is not text: unpack it first"),
    (["utf16.txt", "--encoding", "utf-16"], "utf16.txt has no byte-order mark.*--encoding utf-16-le"),
    (["text.txt", "--encoding", "punycode"], "no encoding 'punycode'"),
    (["text.txt", "missing.txt"], "cannot read missing.txt"),
    (["text.txt", "--valid", "missing.txt"], "cannot read missing.txt"),
    (["text.txt", "--valid", "empty.txt"], "there are no words in empty.txt"),
    (["text.txt", "--valid", "100%"], "cannot hold out 100%"),
    (["text.txt", "--valid", "1.5"], "cannot hold out 150%"),
    (["text.txt", "--valid", "nan"], "cannot hold out"),
    (["text.txt", "--valid", "1000000"], "take all .* tokens of the text"),
    (["text.txt", "--valid", "60%", "--test", "60%"], "take all .* tokens of the text"),
    (["text.txt", "--vocabulary", "missing.txt"], "cannot read missing.txt"),
    (["text.txt", "--vocabulary", "empty.txt"], "has no words"),
    (["text.txt", "--vocabulary", "latin.txt"], "latin.txt is not UTF-8"),
    (["text.txt", "--min-count", "1000000"], "lower the minimum count"),
]


@pytest.mark.parametrize(("arguments", "reason"), TEXTS, ids=[" ".join(arguments)[:40] for arguments, _ in TEXTS])
def test_train_refuses_invalid_text(folder, arguments, reason):
    assert re.search(reason, run_refused(folder, "train", *arguments, "-o", "new.model"))


def test_refused_text_keeps_old_model(folder):
    for text in ("empty.txt", "latin.txt", "words.txt"):
        run_refused(folder, "train", text, "--window", 60, "-o", "text.model", "--overwrite")


def test_empty_standard_input_is_refused(folder):
    result = fflm("train", "-", folder=folder, input="")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert not Path("stdin.model").exists()


# Options.

OPTIONS = [
    "--rate 0",
    "--rate -1",
    "--rate nan",
    "--rate inf",
    "--rate fast",
    "--dropout -0.1",
    "--dropout 1",
    "--dropout nan",
    "--embedding-dropout 1.5",
    "--hidden -3",
    "--hidden 8,0",
    "--hidden eight",
    "--hidden 8,,8",
    "--hidden nan",
    "--epochs 0",
    "--epochs -2",
    "--epochs 1.5",
    "--epochs nan",
    "--window 0",
    "--window -1",
    "--embedding 0",
    "--batch-size 0",
    "--momentum 1",
    "--momentum nan",
    "--weight-decay -1",
    "--weight-decay nan",
    "--weight-decay inf",
    "--decay -1",
    "--decay nan",
    "--warmup 2",
    "--warmup nan",
    "--clip -1",
    "--clip nan",
    "--smoothing 1",
    "--smoothing nan",
    "--patience -1",
    "--evaluate-every -1",
    "--clip inf",
    "--seed -1",
    "--seed 99999999999999999999",
    "--threads 0",
    "--threads -1",
    "--save-every -1",
    "--save-every nan",
    "--activation swish",
    "--optimizer lbfgs",
    "--schedule linear",
    "--tokenizer bytes",
    "--mode verse",
    "--min-count 0",
    "--max-size 1",
    "--processes 0",
    "--embedding 100000000000",
    "--hidden 10000000000000",
    "--hidden 100000000000000000000000",
    "--vectors missing.txt",
    "--vectors binary.txt",
    "--vectors text.txt",
]


@pytest.mark.parametrize("option", OPTIONS)
def test_invalid_option_values_are_refused(folder, option):
    run_refused(folder, "train", "text.txt", "-o", "new.model", *option.split())


def test_invalid_options_are_refused_before_text_is_read(folder):
    assert "rate" in run_refused(folder, "train", "missing.txt", "--rate", "0")


# Folders.


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("train text.txt -o text.txt", "text.txt exists and is not a model"),
        ("train text.txt -o text.txt --overwrite", "text.txt exists and is not a model"),
        ("train text.txt -o folder", "folder exists and is not a model"),
        ("train text.txt -o text.txt/new.model", "cannot write text.txt/new.model: Not a directory"),
        ("train text.txt -o /proc/new.model", "cannot write /proc/new.model"),
        ("train text.txt", "text.model exists: `fflm train --resume text.model`"),
        (f"train text.txt -o {'x' * 300}", "File name too long"),
        ("tokenize text.txt -o text.ids", "text.ids exists"),
        ("tokenize text.txt -o folder --overwrite", "folder exists and is not a tokenized corpus"),
        ("tokenize text.txt -o text.txt/ids", "cannot write text.txt"),
        ("tokenize empty.txt -o text.ids --overwrite", "there are no words in empty.txt"),
        ("train --resume missing.model", "missing.model is not a model"),
        ("train --resume text.txt", "text.txt is not a model"),
        ("train --resume folder", "folder is not a model"),
        ("train --resume text.model --epochs 0", "0 is not in the range 1<=x<=1000000"),
        ("info ''", "Invalid value for '[MODEL]': the path is empty"),
        ("score -m '' text.txt", "the path is empty"),
        ("info missing.model", "missing.model is not a model"),
        ("info text.txt", "text.txt is not a model"),
        ("info text.ids", "text.ids is not a model"),
        ("plot text.txt", "text.txt is not a model"),
    ],
)
def test_invalid_output_and_model_paths_are_refused(folder, arguments, reason):
    assert reason in run_refused(folder, *shlex.split(arguments))


MAKERS = [
    "train text.txt --epochs 1 -o new",
    "classify train lines.tsv -o new",
    "ngram train text.txt -o new",
    "ngram import tiny.arpa -o new",
    "mix text.model --cache 5 -o new",
    "tokenize text.txt -o new",
    "tune text.txt -o new",
]


@pytest.mark.parametrize("arguments", MAKERS, ids=lambda arguments: " ".join(arguments.split()[:2]))
def test_folder_made_meanwhile_by_another_process_is_kept(folder, monkeypatch, arguments):
    """The folder does not exist when the command starts, and exists when the command is done."""
    if arguments.startswith("tune"):
        pytest.importorskip("optuna")
    Path("lines.tsv").write_text("".join(f"{label}\tone of {label}\n" for label in ("good", "bad") for _ in range(20)))
    Path("tiny.arpa").write_text("\\data\\\nngram 1=4\n\n\\1-grams:\n-1 <unk>\n-99 <s>\n-1 </s>\n-1 word\n\n\\end\\\n")
    real, made = files.put_folder, []

    def put_folder(folder, path, check):
        if path == Path("new"):  # but not when it is called for the corpus in it
            shutil.copytree("text.model", path)
            made.append(snapshot(Path()))
        return real(folder, path, check)

    monkeypatch.setattr(files, "put_folder", put_folder)
    result = CliRunner().invoke(main, arguments.split())
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(
        r"(compiling [^\n]+\n)?"  # if no test before has
        r"error: the result was discarded, because new has changed in the meantime: new exists[^\n]+\n",
        result.stderr,
    )
    after = {name: content for name, content in snapshot(Path()).items() if not name.startswith(".new.")}
    assert after == {name: content for name, content in made[0].items() if not name.startswith(".new.")}
    assert [path.name for path in Path().glob(".*")] == []


@pytest.mark.parametrize(
    "arguments",
    [
        "train --resume text.model",
        "train --resume text.model --epochs 9",
        "train text.txt -o text.model --overwrite",
        "ngram train text.txt -o text.model --overwrite",
        "mix other.model --cache 5 -o text.model --overwrite",
    ],
)
def test_model_in_training_is_not_changed_by_other_commands(folder, arguments):
    shutil.copytree("text.model", "other.model")
    with locked_folder(Path("text.model")):
        assert "is already training in text.model: wait for it to end" in run_refused(folder, *arguments.split())
        for use in (*USES[:1], *USES[2:]):
            assert CliRunner().invoke(main, use.split()).exit_code == 0


def test_commands_without_any_model_are_refused(folder):
    shutil.rmtree("text.model")
    for command in ("info", "plot"):
        assert "there is no model in this folder" in run_refused(folder, command)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [300, 4000, 8000])
def test_train_on_full_disk_leaves_no_files(folder, limit):
    """A limit on the size of files gives a process the same errors as a full disk."""

    def restrict():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    before = snapshot(folder)
    result = installed_fflm("train", "text.txt", *SMALL, "--epochs", 2, "-o", "new.model", folder=folder, preexec_fn=restrict)
    assert result.returncode == 1
    assert re.fullmatch(r"error: cannot write [^\n]+\n", result.stderr.splitlines(keepends=True)[-1]), result.stderr
    assert "Traceback" not in result.stderr
    assert snapshot(folder) == before


@pytest.mark.slow
def test_training_resumes_after_disk_was_full(folder):
    """The log grows beyond the limit on the size of files; training resumes from the checkpoint before."""

    def restrict():
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    options = ("--embedding", 2, "--hidden", 2, "--batch-size", 256, "--epochs", 60, "--patience", 0)
    result = installed_fflm("train", "text.txt", *options, "-o", "new.model", folder=folder, preexec_fn=restrict)
    assert result.returncode == 1
    assert re.fullmatch(r"error: cannot write new.model/log.jsonl: File too large", result.stderr.splitlines()[-1])
    assert {path.name for path in Path("new.model").iterdir()} == {path.name for path in Path("text.model").iterdir()}
    result = fflm("train", "--resume", "new.model", folder=folder)
    assert result.returncode == 0, result.stderr
    whole = fflm("train", "text.txt", *options, "-o", "whole.model", folder=folder)
    assert result.stdout.replace("new", "whole") == whole.stdout


# Damaged models.

USES = ["info text.model", "train --resume text.model", "next -m text.model --prefix the", "score -m text.model text.txt"]


def damage(name, change):
    path = Path("text.model", name)
    path.write_bytes(change(path.read_bytes()))


def with_fields(**fields):
    return lambda content: json.dumps({**json.loads(content), **fields}).encode()


def flip_bit(at):
    def flip(content):
        place = int(at * len(content))
        return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]

    return flip


CHANGES = {
    "cut in half": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "emptied": lambda content: b"",
    "one byte long": lambda content: content + b"\0",
    "a picture": lambda content: b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4,
    "a pickle": lambda content: b"\x80\x04\x95" + content,
    "a huge header": lambda content: b"\xff" * 8 + content[8:],
    "a bit of the header": flip_bit(0.05),
    "a bit in the middle": flip_bit(0.5),
    "a bit at the end": flip_bit(0.999),
}


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.safetensors"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_damaged_array_files_are_refused(folder, name, change):
    damage(name, change)
    use = USES[0] if name == "model.safetensors" else USES[1]
    assert f"{name} is damaged" in run_refused(folder, *use.split())


@pytest.mark.parametrize("use", USES[2:])
def test_truncated_weights_are_refused_by_next_and_score(folder, use):
    damage("model.safetensors", lambda content: content[:-1])
    assert "model.safetensors is damaged" in run_refused(folder, *use.split())


CONFIGS = {
    "emptied": (lambda content: b"", "not valid JSON"),
    "cut": (lambda content: content[:-30], "not valid JSON"),
    "not UTF-8": (lambda content: b"\xff" + content, "not valid JSON"),
    "a list": (lambda content: b"[]", "not an fflm model"),
    "something else's": (lambda content: b'{"architectures": []}', "not an fflm model"),
    "of a later version": (with_fields(version=99), "is of version 99, this fflm reads 1: update fflm"),
    "without network": (with_fields(network=None), "damaged"),
    "with a network that is a list": (with_fields(network=[]), "damaged"),
    "with an unknown field": (with_fields(network={"layers": 3}), "damaged"),
    "without text": (with_fields(text=None), "damaged"),
    "without vocabulary": (with_fields(vocabulary=None), "damaged"),
}


@pytest.mark.parametrize(("change", "reason"), CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("use", [USES[0], USES[2]])
def test_damaged_config_json_is_refused(folder, use, change, reason):
    damage("config.json", change)
    assert reason in run_refused(folder, *use.split())


@pytest.mark.parametrize("name", ["network", "training", "corpus", "threads"])
def test_resume_refuses_damaged_config_json(folder, name):
    damage("config.json", with_fields(**{name: "nonsense"}))
    run_refused(folder, "train", "--resume", "text.model")


@pytest.mark.parametrize("name", ["training", "corpus", "created", "versions"])
def test_info_refuses_damaged_config_json(folder, name):
    damage("config.json", lambda content: json.dumps({k: v for k, v in json.loads(content).items() if k != name}).encode())
    assert "text.model/config.json is damaged" in run_refused(folder, "info", "text.model")


VOCABULARIES = {
    "too short": lambda content: b"".join(content.splitlines(keepends=True)[:-3]),
    "too long": lambda content: content + b"surplus\t3\n",
    "with two words swapped": lambda content: b"".join(
        [*(lines := content.splitlines(keepends=True))[:-2], lines[-1], lines[-2]]
    ),
    "without counts": lambda content: re.sub(rb"\t\d+", b"", content),
    "with a word twice": lambda content: b"".join([*(lines := content.splitlines(keepends=True))[:-1], lines[-2]]),
    "without symbols": lambda content: content.replace(b"<unk>", b"known"),
    "emptied": lambda content: b"",
    "binary": lambda content: bytes(range(256)),
}


@pytest.mark.parametrize("change", VOCABULARIES.values(), ids=VOCABULARIES)
def test_damaged_vocabulary_is_refused(folder, change):
    damage("vocabulary.tsv", change)
    assert "vocabulary.tsv is damaged" in run_refused(folder, "info", "text.model")


@pytest.mark.parametrize("name", ["config.json", "vocabulary.tsv", "model.safetensors"])
def test_model_with_missing_file_is_refused(folder, name):
    Path("text.model", name).unlink()
    run_refused(folder, "next", "--model", "text.model", "--prefix", "the")


def test_damaged_log_is_refused(folder):
    damage("log.jsonl", lambda content: b"\0\xff\n" + content)
    assert "log.jsonl, line 1, is damaged" in run_refused(folder, "info", "text.model")
    assert "log.jsonl, line 1, is damaged" in run_refused(folder, "plot", "text.model")


@pytest.mark.parametrize("line", [b"[1]\n", b'{"event": "evaluation"}\n', b'{"no": "event"}\n'])
def test_log_with_invalid_events_is_refused(folder, line):
    damage("log.jsonl", lambda content: line + content)
    for command in ("info", "plot"):
        assert "damaged" in run_refused(folder, command, "text.model")


@pytest.mark.parametrize("name", ["corpus/train.npy", "corpus/valid.npy", "corpus/corpus.json", "corpus/vocabulary.tsv"])
@pytest.mark.parametrize("change", [CHANGES[name] for name in ("cut in half", "emptied", "a pickle", "a bit at the end")])
def test_resume_refuses_damaged_corpus(folder, name, change):
    damage(name, change)
    run_refused(folder, "train", "--resume", "text.model")


# Standard streams.


def test_closed_standard_input_is_refused(folder):
    result = subprocess.run([FFLM, "score", "-m", "text.model"], preexec_fn=lambda: os.close(0), capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: the text contains no words: give a text that is not empty or blank\n"


@pytest.mark.parametrize("closed", [1, 2])
def test_closed_standard_output_is_not_an_error(folder, closed):
    command = [FFLM, "next", "-m", "text.model"]
    result = subprocess.run(command, preexec_fn=lambda: os.close(closed), capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert bool(result.stdout) == (closed == 2)


class Terminal(io.TextIOWrapper):
    """A stream that claims to be a terminal."""

    def isatty(self):
        """Return True, as a terminal does."""
        return True


def run_with_streams(monkeypatch, kind, encoding, *arguments):
    """Run a command with streams of an encoding; return the bytes written to stdout and stderr, and the exit status."""
    streams = {name: kind(io.BytesIO(), encoding=encoding, errors="strict") for name in ("stdout", "stderr")}
    with monkeypatch.context() as patch:
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as end:
            main(list(map(str, arguments)))
    for stream in streams.values():
        stream.flush()
    return *(stream.buffer.getvalue() for stream in streams.values()), end.value.code


CHARACTERS = "小猫 é 🎉"
SHOWS_CHARACTERS = [
    ("generate", "-m", "text.model", "--prefix", CHARACTERS, "--length", 1, "--seed", 1),
    ("generate", "-m", "text.model", "--prefix", CHARACTERS, "--length", 1, "--seed", 1, "--json"),
    ("next", "-m", "text.model", "--prefix", CHARACTERS, "--json"),
    ("score", "-m", "text.model", "characters.txt", "--by", "word"),
    ("score", "-m", "text.model", "characters.txt", "--by", "sentence", "--json"),
    ("score", "-m", "text.model", "characters.txt", "--nbest", "plain"),
    ("neighbours", "-m", "text.model", "小"),
    ("info", "小猫.model"),
    ("tokenize", "characters.txt", "-o", "小猫.ids", "--valid", "0", "--min-count", "1", "-q"),
    ("小猫",),
]


@pytest.mark.parametrize("arguments", SHOWS_CHARACTERS, ids=lambda arguments: " ".join(map(str, arguments)))
def test_output_is_utf_8_in_files_and_escaped_on_legacy_terminals(folder, monkeypatch, arguments):
    (folder / "characters.txt").write_text(CHARACTERS + "\n", encoding="utf-8")
    expected = run_with_streams(monkeypatch, io.TextIOWrapper, "utf-8", *arguments)
    assert set(b"".join(expected[:2]).decode("utf-8")) & set("小猫é🎉")
    for kind, encoding in (
        (io.TextIOWrapper, "cp1252"),
        (io.TextIOWrapper, "latin-1"),
        (io.TextIOWrapper, "ascii"),
        (io.TextIOWrapper, "utf-16"),
        (Terminal, "ascii"),
        (Terminal, "utf-8"),
    ):
        shutil.rmtree("小猫.ids", ignore_errors=True)
        assert run_with_streams(monkeypatch, kind, encoding, *arguments) == expected
    shutil.rmtree("小猫.ids", ignore_errors=True)
    *shown, status = run_with_streams(monkeypatch, Terminal, "latin-1", *arguments)
    assert status == expected[2]
    for legacy, full in zip(shown, expected, strict=False):
        text = legacy.decode("latin-1")
        assert text == full.decode().replace("小", "\\u5c0f").replace("猫", "\\u732b").replace("🎉", "\\ud83c\\udf89")
    if "--json" in arguments:  # characters are escaped as JSON does
        legacy, full = (stream.decode(name).splitlines() for stream, name in ((shown[0], "latin-1"), (expected[0], "utf-8")))
        assert list(map(json.loads, legacy)) == list(map(json.loads, full))


@pytest.mark.skipif(sys.getfilesystemencoding() != "utf-8" or sys.platform != "linux", reason="file names must be Unicode")
def test_file_names_that_are_not_utf_8_work(folder, monkeypatch):
    """Python represents such names with surrogates, which neither UTF-8 nor JSON can hold unescaped."""
    pytest.importorskip("matplotlib")
    name = os.fsdecode(b"caf\xe9")
    Path("text.txt").rename(f"{name}.txt")
    commands = [
        ("train", f"{name}.txt", *SMALL, "--epochs", "1", "-q", "--json"),
        ("train", "--resume", f"{name}.model", "--epochs", "2", "-q", "--json"),
        ("info", f"{name}.model", "--json"),
        ("plot", f"{name}.model", "text.model", "-o", f"{name}.svg", "--json"),
        ("tokenize", f"{name}.txt", "-o", f"{name}.ids", "--json"),
        ("tune", f"{name}.txt", "--search", "rate=0.001..0.01", "--trials", "1", *SMALL, "--epochs", "1", "-q", "--json"),
    ]
    for command in commands:
        stdout, stderr, status = run_with_streams(monkeypatch, io.TextIOWrapper, "utf-8", *command)
        assert status in (0, None), stderr
        assert name in json.dumps(json.loads(stdout), ensure_ascii=False)
    assert json.loads(Path(f"{name}.model", "corpus", "corpus.json").read_bytes())["sources"]["train"] == [f"{name}.txt"]
    assert b"caf\\udce9.model" in Path(f"{name}.svg").read_bytes()
    _, stderr, status = run_with_streams(monkeypatch, io.TextIOWrapper, "utf-8", "score", "-q", f"{name}.missing")
    assert (stderr, status) == (b"error: cannot read caf\\udce9.missing: No such file or directory\n", 1)


def test_arguments_in_locale_c_are_read_as_utf_8(folder, monkeypatch):
    """In the locale C, Python may decode bytes of UTF-8 as surrogates."""
    prefix = CHARACTERS.encode().decode("ascii", "surrogateescape")
    stdout, _, _ = run_with_streams(
        monkeypatch, io.TextIOWrapper, "ascii", "next", "-m", "text.model", "--prefix", prefix, "--json"
    )
    assert json.loads(stdout)["prefix"] == CHARACTERS
    for line in (
        ("next", "-m", "text.model", "--prefix", "\udcff"),
        ("neighbours", "\udcff"),
        ("analogy", "the", "\udcff", "cat"),
    ):
        assert "is not valid UTF-8" in run_refused(folder, *line)
