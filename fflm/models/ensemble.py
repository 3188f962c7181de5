"""Training of an ensemble: networks that differ in their random seeds, which become the members of a mixture in equal shares.

The members are in the folder of the mixture, each a training session in a folder of its own, so that an interrupted member
resumes from its checkpoint. The mixture's config.json is there from the start; it has the fingerprint of each member that is
trained. When all are, the weights of the mixture are written, with its figures.

Several processes can train one ensemble, each one member at a time. A process keeps a file locked for its member. When it ends,
even if it is killed, the system releases that lock, and the next process that looks for a member resumes this one.

The weights are equal, because members of the same network on the same text are equally good but for chance: weights that fit
the validation text best would fit that chance, and an ensemble without validation text would have none.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np

from fflm.arguments import Device, Overwrite, PathLike, Processes, Progress, Texts, checked, refuse_unknown
from fflm.arrays import CONFIG, WEIGHTS, meaning, save_arrays
from fflm.backend.devices import Compute
from fflm.clock import local_time
from fflm.errors import FflmError, SettingsError
from fflm.files import FolderLock, NewFolder, lock_file, locked_folder, remove_leftovers, watched_folder, write_json
from fflm.models.base import Predictor
from fflm.models.corpora import describe_corpus, find_corpus, is_described
from fflm.models.creation import model_path, new_model, pop_fields, text_source
from fflm.models.folder import fingerprint, read_config, require, save_description
from fflm.models.mixture.model import ComponentScorer, Mixture
from fflm.models.neural.model import NeuralModel
from fflm.models.neural.train import OPTIONS, PRESETS, TrainingSession, check_length, network_settings, resolve_settings
from fflm.models.scoring import score_part
from fflm.network.config import NetworkConfig
from fflm.parallel.world import world
from fflm.signals import ctrl_c
from fflm.stored import REMEDY
from fflm.text.corpus import Corpus
from fflm.training.session import Callback, check_size
from fflm.training.settings import (
    TEACHER_WEIGHT,
    Extend,
    Initial,
    Members,
    NetworkPreset,
    Parallel,
    TeacherPath,
    TeacherWeight,
    TrainingSettings,
    Vectors,
    refuse_idle,
)

WAITING_SECONDS = 0.5
"""How long a process waits before it looks again for a member that another process has left."""


@checked
def start_ensemble(
    inputs: Texts,
    path: PathLike | None = None,
    *,
    members: Members,
    overwrite: Overwrite = False,
    processes: Processes = None,
    progress: Progress = None,
    vectors: Vectors = None,
    preset: NetworkPreset = "default",
    parallel: Parallel = "auto",
    initial: Initial = None,
    extend_vocabulary: Extend = False,
    teacher: TeacherPath = None,
    teacher_weight: TeacherWeight = TEACHER_WEIGHT,
    **fields: Any,
) -> "Ensemble":
    """Tokenize the text once for all members, unless that was done, and set up the folder.

    Parameters
    ----------
    inputs, path, processes, progress, preset, fields
        As `fflm.train` takes them: the settings that all members share. The folder must not exist.
    members
        Number of members.
    overwrite, vectors, parallel, initial, extend_vocabulary, teacher, teacher_weight
        These options are refused.

    Raises
    ------
    FflmError
        If anything is wrong with them, the text or the folder, which then does not exist.
    """
    refused = {
        "overwrite": overwrite,
        "vectors": vectors is not None,
        "parallel": parallel != "auto",
        "initial": initial is not None,
        "extend_vocabulary": extend_vocabulary,
        "teacher": teacher is not None,
        "teacher_weight": teacher is None and teacher_weight != TEACHER_WEIGHT,
    }
    if given := [f"`{name}`" for name, value in refused.items() if value]:
        raise SettingsError(
            f"the members of an ensemble learn from the text alone, each in one process and a new folder: "
            f"leave out {', '.join(given)}, or train one network with `members=1`"
        )
    fields = PRESETS[preset] | fields
    source = text_source(inputs, fields)
    place = model_path(path, source.inputs)
    _check_new(place)
    compute = Compute.choose(**pop_fields(fields, Compute))
    shape, settings, automatic = network_settings(fields)
    refuse_unknown(fields, OPTIONS)
    refuse_idle(shape, settings, automatic)
    dataclasses.replace(settings, seed=settings.seed + members - 1)  # the largest seed must be possible
    with new_model(source, place, lambda: _check_new(place), processes=processes, progress=progress) as (new, corpus):
        assert isinstance(new, NewFolder)
        config, settings = resolve_settings(shape, settings, automatic, corpus)
        check_length(corpus, config)
        check_size(config)
        about = {
            "network": config.to_dict(),
            "training": settings.to_dict(),
            **dataclasses.asdict(compute),
            "corpus": describe_corpus(corpus, place),
            "created": local_time(),
        }
        components = [{"path": f"member-{number}"} for number in range(1, members + 1)]
        kind = {"kind": "mixture", "mixture": {"components": components}}
        save_description(new.folder, kind, corpus.settings, corpus.vocabulary, about)
        new.publish()
    return Ensemble(place, corpus)


def _check_new(path: Path) -> None:
    """Raise an FflmError if there is anything at a path."""
    if path.exists():
        resume = f"`fflm.resume('{path}')` resumes its training, or " if is_ensemble(path) else ""
        raise FflmError(f"{path} exists: {resume}choose another folder")


def is_ensemble(path: Path) -> bool:
    """Return whether there is a model in a folder that is a mixture whose members are trained together."""
    with contextlib.suppress(FflmError):
        return "training" in read_config(path, "mixture")
    return False


class Ensemble:
    """The training of an ensemble, and its folder. Made by `start_ensemble` or `resume`; call `finish`.

    Parameters
    ----------
    path
        The folder of the mixture.
    corpus
        The text of all members.

    Attributes
    ----------
    path, corpus
        As above.
    config, settings, compute
        What all members share: the network, the settings of training, in which the seed is that of the first member, and the
        device.
    save_seconds
        Seconds between the checkpoints of a member; by default those of `Session`.

    Raises
    ------
    FflmError
        If several processes train together.
    """

    published = True

    def __init__(self, path: Path, corpus: Corpus) -> None:
        if world().size > 1:
            raise FflmError("a member is trained by one process: let each process leave the others first, with `separate`")
        self.path = path
        self.corpus = corpus
        about = self._read()
        self.config = NetworkConfig.from_dict(about["network"])
        self.settings = TrainingSettings.from_dict(about["training"])
        self.compute = Compute.from_dict(about)
        self.save_seconds: float | None = None
        self._watched: FolderLock  # while members are trained

    @classmethod
    def resume(cls, path: Path, *, epochs: int | None = None, device: Device | None = None) -> Self:
        """Open the ensemble in a folder to train the members that are left; it may be trained by other processes.

        Raises
        ------
        FflmError
            If it is not an ensemble, its files are damaged, or the text has changed; or if a setting is given, as members keep
            theirs.
        """
        about = read_config(path, "mixture")
        if "training" not in about:
            raise FflmError(f"{path} is a mixture of models that were trained before: resume the training of one of them")
        if epochs is not None or device is not None:
            raise FflmError(f"{path} is an ensemble, whose members keep their settings: leave out `epochs` and `device`")
        require(path, about, "network", "threads", "corpus")
        corpus = Corpus.open(find_corpus(path, about["corpus"]))
        if not is_described(corpus, about["corpus"]) or about["network"]["vocabulary"] != len(corpus.vocabulary):
            raise FflmError(f"{path} was trained on other data than {corpus.path} holds now: restore that, or train again")
        return cls(path, corpus)

    @property
    def members(self) -> int:
        """Number of members."""
        return len(self._components(self._read()))

    @property
    def trained(self) -> int:
        """Number of members that are trained."""
        return self.members - len(self._untrained())

    @property
    def figures(self) -> dict[str, Any]:
        """How well the mixture and its members predict the validation and the test text, as stored with the mixture's weights."""
        return Mixture.load(self.path).figures

    def finish(self, *callbacks: Callback, waiting: Callable[[], None] = lambda: None) -> bool:
        """Train members until all are trained, here or in other processes, or until Ctrl-C is pressed, which saves.

        Parameters
        ----------
        *callbacks
            Functions that are called with the session of a member and each of its events.
        waiting
            A function that is called every half second while other processes train all members that are left.

        Returns
        -------
        bool
            Whether all members are trained, and the mixture is complete.

        Raises
        ------
        FflmError
            If a file cannot be written, a member does not converge, or the folder was moved or replaced.
        KeyboardInterrupt
            As for `Session.finish`, or if Ctrl-C is pressed while no member is trained here. `resume` continues.
        """
        with ctrl_c(), watched_folder(self.path) as self._watched:
            remove_leftovers(self.path)
            while self._untrained():
                with contextlib.ExitStack() as claims:
                    number = self._claim(claims)
                    if number is not None:
                        if not self._train(number, callbacks):
                            return False
                        continue
                waiting()
                time.sleep(WAITING_SECONDS)
            self._combine()
        return True

    def _read(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return read_config(self.path, "mixture")

    def _components(self, about: dict[str, Any]) -> list[dict[str, str]]:
        """Return what config.json says of the members: the path of each, and the fingerprint if it is trained."""
        components: list[dict[str, str]] = about["mixture"]["components"]
        if [each.get("path") for each in components] != [f"member-{number}" for number in range(1, len(components) + 1)]:
            raise FflmError(f"{self.path / CONFIG} is damaged (it does not list the members): {REMEDY}")
        return components

    def _untrained(self) -> list[int]:
        """Return the numbers of the members that are not trained yet."""
        return [number for number, each in enumerate(self._components(self._read()), 1) if "fingerprint" not in each]

    def _folder(self, number: int) -> Path:
        """Return the folder of a member."""
        return self.path / f"member-{number}"

    def _claim(self, claims: contextlib.ExitStack) -> int | None:
        """Return the next member to train, locked until the stack is closed, or None if there is none for this process."""
        self._watched.check()
        for number in self._untrained():
            if lock_file(self.path / f"member-{number}.lock", claims):
                if number in self._untrained():
                    return number
                claims.close()  # its process has finished it after this one had read config.json
        return None

    def _train(self, number: int, callbacks: tuple[Callback, ...]) -> bool:
        """Train a member, and return whether it is trained."""
        path = self._folder(number)
        if path.exists():
            session = TrainingSession.resume(path, self.corpus)
        else:
            settings = dataclasses.replace(self.settings, seed=self.settings.seed + number - 1)
            with NewFolder(path) as new:
                session = TrainingSession.start(new, self.corpus, self.config, settings, self.compute)
        session.label = f"member {number} of {self.members}"
        if self.save_seconds is not None:
            session.save_seconds = self.save_seconds
        if not session.finish(*callbacks):
            return False
        self._watched.check()
        with locked_folder(self.path, wait=True):
            about = self._read()
            self._components(about)[number - 1]["fingerprint"] = fingerprint(path)
            write_json(self.path / CONFIG, about)
        return True

    def _combine(self) -> None:
        """Write the weights of the mixture with its figures, unless another process has."""
        self._watched.check()
        with locked_folder(self.path, wait=True):
            about = self._read()
            if (self.path / WEIGHTS).is_file():
                return
            folders = [self._folder(number) for number in range(1, self.members + 1)]
            members: dict[str, Predictor] = {str(folder): NeuralModel.load(folder, self.compute.device) for folder in folders}
            mixture = Mixture(members, np.full(len(members), 1 / len(members)))
            figures = {}
            for name in ("valid", "test"):
                if name in self.corpus.parts:
                    scorer = ComponentScorer(mixture)
                    score = score_part(scorer, self.corpus.parts[name])
                    alone = [each.to_dict() for each in scorer.component_scores(score)]
                    figures[name] = {**score.to_dict(), "components": alone}
            save_arrays(self.path / WEIGHTS, {"weights": mixture.weights}, figures, meaning(about))
