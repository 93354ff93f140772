"""What the networks saw, in the streams that keep it."""

from pathlib import Path

import awkward as ak
import numpy as np
import uproot

from stages import records
from stages.config import CHANNELS, Config
from stages.menu.crops import CropKeeper
from stages.menu.output import StreamFiles
from streamer.block import Array, Block, Columns
from streamer.journal import Journal

PATHS = {"Some_v1": "run == 1", "Others_v1": "run == 2"}
STREAMS = {
    "seen": {"content": "crops", "datasets": {"Some": ["Some_v1"]}},
    "plain": {"datasets": {"Others": ["Others_v1"]}},
}


def config(folder: Path) -> Config:
    taggers = {"qg": {}, "all": {"objects": "Event", "model": "x.onnx", "channels": ["HCAL", "TOB"]}}
    return Config.model_validate(
        {"taggers": taggers, "menu": {"paths": PATHS, "streams": STREAMS}, "writer": {"dir": folder}}
    )


def members(random: np.random.Generator, n: int, dtype: str) -> Array:
    return random.integers(0, 100, n).astype(dtype)


def block_of(settings: Config, runs: list[int], random: np.random.Generator) -> Block:
    """Events with random crops and frames, decided by their runs."""
    schema, n = records.journal(settings), len(runs)
    lengths, columns = {"event": n}, Columns()
    for column in schema.columns:
        shape = (lengths[column.per], *column.shape)
        if column.counts:
            columns[column.name] = random.integers(0, 4, shape).astype(np.int32)
            lengths[column.counts] = int(columns[column.name].sum())
        else:
            columns[column.name] = members(random, int(np.prod(shape)), column.wire_dtype.str).reshape(shape)
    columns["run"] = np.array(runs, np.uint32)
    columns["error"] = np.zeros(n, np.uint8)
    columns["prescaleColumn"] = np.zeros(n, np.uint8)
    columns["pathAccepted"] = np.array([[1 if run == 1 else 2 if run == 2 else 0] for run in runs], np.uint8)
    return Block(0, n, columns)


async def test_pixels_of_accepted_events_are_kept_by_crop_and_channel(tmp_path: Path) -> None:
    settings = config(tmp_path)
    schema = records.journal(settings)
    nothing = Block(0, 2, {**schema.empty(2), "run": np.array([1, 3], np.uint32)})
    schema.check(CropKeeper(settings)(nothing).columns, 2)
    whole = block_of(settings, [1, 3, 2, 1, 1], np.random.default_rng(1))
    schema.check(whole.columns, 5)
    kept = CropKeeper(settings)(whole)
    schema.check(kept.columns, 5)
    assert kept.columns["nQgCrop"].tolist() == np.where([1, 0, 0, 1, 1], whole.columns["nQgCrop"], 0).tolist()
    assert kept.columns["nJet"].tolist() == whole.columns["nJet"].tolist(), "no other collection has lost anything"
    journal = Journal(tmp_path / "journal", {}, schema, print)
    journal.add(kept)
    await journal.sync()
    StreamFiles(settings, 0).write(journal, 0, {})
    journal.close()
    with uproot.open(tmp_path / "streams" / "seen.root") as file:
        seen = file["Events"].arrays()
    with uproot.open(tmp_path / "streams" / "plain.root") as file:
        assert not [name for name in file["Events"].keys() if "Crop" in name or "Pixel" in name]  # noqa: SIM118
    channels = settings.taggers["qg"].channels
    for row, event in enumerate([0, 3, 4]):
        one = schema.slice(whole.columns, event, event + 1)
        assert seen["QgCrop_jetIdx"][row].tolist() == one["QgCrop_object"].tolist()
        wanted = [
            (crop, CHANNELS.index(channel))
            for crop, counts in enumerate(one["nQgPixel"])
            for channel, n in zip(channels, counts, strict=True)
            for _ in range(n)
        ]
        found = ak.to_list(ak.zip([seen["QgPixel_cropIdx"][row], seen["QgPixel_channel"][row]]))
        assert found == wanted
        assert seen["QgPixel_index"][row].tolist() == one["QgPixel_index"].tolist()
        assert seen["QgPixel_value"][row].tolist() == one["QgPixel_value"].tolist()
        of_frame = np.repeat([CHANNELS.index(channel) for channel in settings.channels], one["nPixel"][0])
        assert seen["Pixel_channel"][row].tolist() == of_frame.tolist()
        assert seen["Pixel_value"][row].tolist() == one["Pixel_value"].tolist()
