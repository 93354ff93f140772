"""What to train and how; imports nothing heavy."""

from dataclasses import dataclass

from stages.config import Config
from streamer.errors import UsageError, nearest


@dataclass(frozen=True)
class Settings:
    """What is trained and how.

    Attributes
    ----------
    tagger : str
        One of `stages.config.TAGGERS`.
    arch : str
        One of `stages.training.networks.ARCHITECTURES`.
    batch, learning_rate : optional
        Those of the architecture where nothing is said.
    channels : tuple of str
        Only these of the tagger's channels; empty: all.
    shuffle_labels : bool
        Train on labels dealt out anew, which nothing can be learned from.
    """

    tagger: str
    arch: str = "small"
    epochs: int = 12
    seed: int = 1
    threads: int = 2
    batch: int | None = None
    learning_rate: float | None = None
    channels: tuple[str, ...] = ()
    shuffle_labels: bool = False

    @property
    def config(self) -> Config:
        """The stream's configuration for this tagger alone.

        Raises
        ------
        UsageError
            `channels` are not the tagger's.
        """
        config = Config.model_validate({"taggers": {self.tagger: {"model": "none"}}})
        if not self.channels:
            return config
        own = config.taggers[self.tagger].channels
        for channel in self.channels:
            if channel not in own:
                raise UsageError(
                    f"--channels: {self.tagger} has no channel '{channel}'{nearest(channel, own)}; "
                    f"it has {', '.join(own)}"
                )
        picked = tuple(channel for channel in own if channel in self.channels)
        return Config.model_validate({"taggers": {self.tagger: {"model": "none", "channels": picked}}})
