"""The CMS end-to-end taggers as a stream: the detector's meaning, and no sockets."""

from stages.config import Config
from streamer.pipeline import Pipeline, StageSpec

CHAIN = (
    StageSpec("reader", "stages.reader:Reader"),
    StageSpec("framer", "stages.framer:Framer"),
    StageSpec("cropper", "stages.cropper:Cropper"),
    StageSpec("tagger", "stages.tagger:Tagger", rehearse="stages.rehearsing:rehearse"),
    StageSpec("writer", "stages.writer:Writer"),
)

PIPELINE = Pipeline(
    name="e2e",
    config=Config,
    chain=CHAIN,
    add_commands="stages.commands:add_commands",
    checks="stages.commands:checks",
    finish="stages.finishing:finish_run",
    draw="stages.glimpse:draw",
    changed="stages.swapped:keep",
    preload=("stages.preload",),
    quality="stages.quality:measured",
)
