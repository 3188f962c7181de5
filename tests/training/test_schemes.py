"""The choice of what several processes divide, and the sizes of messages."""

import re
from pathlib import Path

import pytest

from fflm.errors import FflmError
from fflm.network.config import NetworkConfig
from fflm.training.schemes import choose_scheme, data_bytes, vocabulary_bytes
from fflm.training.settings import TrainingSettings

EXACT = TrainingSettings(batch_size=512)


def untied(vocabulary, **fields):
    return NetworkConfig(vocabulary, 4, 128, (256,), tied=False, **fields)


@pytest.mark.parametrize(
    ("config", "settings", "processes", "expected"),
    [
        (untied(10_000), EXACT, 4, "vocabulary"),
        (untied(10_000), EXACT, 1, "data"),
        (untied(100), EXACT, 4, "data"),  # most of the work is that of the hidden layers
        (untied(10_000), TrainingSettings(batch_size=2**14), 4, "data"),  # the hidden gradients of a batch are many
        (untied(10_000), TrainingSettings(loss="sampled"), 4, "data"),
        (NetworkConfig(10_000), EXACT, 4, "data"),
        (untied(10_000, bands=(2000,)), EXACT, 4, "data"),
    ],
)
def test_scheme_that_sends_less_is_chosen(config, settings, processes, expected):
    assert choose_scheme("auto", config, settings, processes, "cpu") == expected
    assert choose_scheme("data", config, settings, processes, "cpu") == "data"


@pytest.mark.parametrize(
    ("config", "settings", "processes", "device", "reason"),
    [
        (NetworkConfig(10_000), EXACT, 2, "cpu", "tied to the embeddings; give `tied=False`, or `parallel='data'`"),
        (untied(10_000, bands=(2000,)), EXACT, 2, "cpu", "leave out `bands`"),
        (untied(10_000), TrainingSettings(loss="nce"), 2, "cpu", "the loss nce uses a few words only; give `loss='exact'`"),
        (untied(3), EXACT, 4, "cpu", "only 3 words; start fewer processes"),
        (untied(10_000), EXACT, 2, "cuda", "give `device='cpu'`"),
    ],
)
def test_vocabulary_that_cannot_be_divided_is_refused(config, settings, processes, device, reason):
    with pytest.raises(FflmError, match=f"^the vocabulary cannot be divided among processes: .*{re.escape(reason)}"):
        choose_scheme("vocabulary", config, settings, processes, device)
    assert choose_scheme("auto", config, settings, processes, device) == "data"


def test_message_sizes_in_documentation_are_those_of_the_formulas():
    text = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| ([\d.,]+) MB \| ([\d.,]+) MB \|$", text, re.MULTILINE)
    assert len(rows) == 9
    for row in rows:
        vocabulary, processes, data, divided = (float(number.replace(",", "")) for number in row)
        config = untied(int(vocabulary))
        assert data == round(data_bytes(config, int(processes)) / 1e6, 1)
        assert divided == round(vocabulary_bytes(config, EXACT, int(processes)) / 1e6, 1)
