"""What several processes that train one model divide among them: the rows of each batch, or the words of the vocabulary."""

import math

from fflm.errors import SettingsError
from fflm.network.config import NetworkConfig
from fflm.network.parameters import parameter_count, shapes
from fflm.training.settings import Parallel, Scheme, TrainingSettings

NUMBER = 4
"""Bytes of a number in the messages of both schemes."""


def choose_scheme(parallel: Parallel, config: NetworkConfig, settings: TrainingSettings, processes: int, device: str) -> Scheme:
    """Return what the processes divide.

    Parameters
    ----------
    parallel
        The scheme, or ``auto``. This divides the vocabulary if that sends fewer bytes in a step (`data_bytes`,
        `vocabulary_bytes`), and the hidden layers, which are not divided then, have fewer weights than each process's words.
    config, settings
        The configuration of the network and the settings of training.
    processes
        The number of processes.
    device
        The device: ``cpu`` or ``cuda``.

    Raises
    ------
    FflmError
        If the vocabulary cannot be divided.
    """
    reason = why_not_vocabulary(config, settings, processes, device)
    if parallel == "vocabulary" and reason:
        raise SettingsError(f"the vocabulary cannot be divided among processes: {reason}, or `parallel='data'`")
    if parallel != "auto":
        return parallel
    if reason or processes == 1:
        return "data"
    less = vocabulary_bytes(config, settings, processes) < data_bytes(config, processes)
    hidden = sum(math.prod(shape) for name, shape in shapes(config).items() if name.startswith("hidden"))
    return "vocabulary" if less and hidden <= config.classes / processes * config.hidden_width else "data"


def why_not_vocabulary(config: NetworkConfig, settings: TrainingSettings, processes: int, device: str) -> str:
    """Return why a vocabulary cannot be divided, with a remedy; an empty string if it can be."""
    if config.tied:
        return "the output weights are tied to the embeddings; give `tied=False`"
    if config.bands:
        return "the softmax is adaptive; leave out `bands`"
    if settings.loss != "exact":
        return f"the loss {settings.loss} uses a few words only; give `loss='exact'`"
    if config.classes < processes:
        return f"it has only {config.classes} words; start fewer processes"
    return "it can be done on the CPU only; give `device='cpu'`" if device != "cpu" else ""


def data_bytes(config: NetworkConfig, processes: int) -> int:
    """Return how many bytes each process sends in a step with the exact loss if the rows are divided: the gradients' sums."""
    return round(2 * NUMBER * parameter_count(config) * (processes - 1) / processes)


def vocabulary_bytes(config: NetworkConfig, settings: TrainingSettings, processes: int) -> int:
    """Return how many bytes each process sends in a step if the words are divided.

    These are the sums of the gradients of the hidden outputs, and for each row a normalizer (float64) to each other process.
    """
    sums = 2 * NUMBER * settings.batch_size * config.hidden_width * (processes - 1) / processes
    return round(sums + 8 * settings.batch_size * (processes - 1))
