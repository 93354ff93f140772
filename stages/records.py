"""Every column, declared once: what the input files hold, and what travels on each hop.

Names, units and meanings follow CMS NanoAOD where it has them (GeV, cm, ns; phi in [-pi, pi)).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from stages.config import CHANNELS, SEED_CHANNEL, Config, TaggerSpec
from stages.detector.layout import TOWER
from streamer.block import CORE_COLUMNS, FED_TIME, LUMISECTION, WHY, Column, Columns, Schema, count_column


@dataclass(frozen=True)
class InputColumn:
    """A column of the input tree.

    Parameters
    ----------
    collection : str
        The collection it belongs to, or empty for one value an event.
    channels : tuple of str
        The detector channels that need it, where they are made from its collection.
    objects : str
        The objects that need it.
    optional : bool
        Nothing is lost without it.
    default : int
        Its value where an input does not have it.
    """

    name: str
    dtype: str
    unit: str
    doc: str
    collection: str = ""
    channels: tuple[str, ...] = ()
    objects: str = ""
    optional: bool = False
    default: int = 0

    @property
    def wire(self) -> Column:
        """The same column on a hop."""
        return Column(self.name, self.dtype, self.collection or "event", (), self.unit, self.doc)


def _hits(collection: str, what: str, channel: str) -> list[InputColumn]:
    return [
        InputColumn(f"{collection}_detid", "u4", "", f"raw detid of the {what}", collection, (channel,)),
        InputColumn(f"{collection}_energy", "f4", "GeV", f"energy of the {what}", collection, (channel,)),
        InputColumn(f"{collection}_time", "f4", "ns", f"time of the {what}", collection, optional=True),
    ]


def _directions(collection: str, what: str, objects: str = "") -> list[InputColumn]:
    return [
        InputColumn(f"{collection}_pt", "f4", "GeV", f"transverse momentum of the {what}", collection, (), objects),
        InputColumn(f"{collection}_eta", "f4", "", f"pseudorapidity of the {what}", collection, (), objects),
        InputColumn(f"{collection}_phi", "f4", "rad", f"azimuth of the {what}", collection, (), objects),
    ]


def _positions(collection: str, what: str, channels: tuple[str, ...]) -> list[InputColumn]:
    return [InputColumn(f"{collection}_{axis}", "f4", "cm", f"{axis} of the {what}", collection, channels)
            for axis in "xyz"]  # fmt: skip


LABELS = {objects: f"{objects}_genLabel" for objects in SEED_CHANNEL}
"""Objects to the column that holds their truth."""

UNKNOWN = -1
"""The truth label of an object that nothing is known about."""


def _truth(objects: str, what: str) -> InputColumn:
    doc = f"truth: {what}, -1 unknown"
    return InputColumn(LABELS[objects], "i1", "", doc, objects, (), objects, optional=True, default=UNKNOWN)


TRACKS = ("TrackPt", "TrackD0", "TrackDz")
PIXELS = ("BPIX1", "BPIX2", "BPIX3", "BPIX4")
STRIPS = ("TIB", "TOB", "TID", "TEC")

INPUT = (
    InputColumn("run", "u4", "", "run number"),
    InputColumn("luminosityBlock", "u4", "", "lumisection number"),
    InputColumn("event", "u8", "", "event number"),
    *_hits("EBRecHit", "ECAL barrel rechit", "ECAL"),
    *_hits("EERecHit", "ECAL endcap rechit", "ECAL"),
    *_hits("HBHERecHit", "HCAL barrel or endcap rechit", "HCAL"),
    InputColumn("Tower_eta", "f4", "", "pseudorapidity of the calorimeter tower", "Tower", ("ECAL", "HCAL")),
    InputColumn("Tower_phi", "f4", "rad", "azimuth of the calorimeter tower", "Tower", ("ECAL", "HCAL")),
    InputColumn("Tower_emEnergy", "f4", "GeV", "its energy in the ECAL", "Tower", ("ECAL",)),
    InputColumn("Tower_hadEnergy", "f4", "GeV", "its energy in the HCAL", "Tower", ("HCAL",)),
    InputColumn("Track_pt", "f4", "GeV", "transverse momentum of the track", "Track", ("TrackPt",)),
    InputColumn("Track_eta", "f4", "", "pseudorapidity of the track", "Track", TRACKS),
    InputColumn("Track_phi", "f4", "rad", "azimuth of the track", "Track", TRACKS),
    InputColumn("Track_charge", "i1", "e", "charge of the track", "Track"),
    InputColumn("Track_d0", "f4", "cm", "impact parameter in the transverse plane, x sin(phi) - y cos(phi) "
                "of the point of closest approach relative to the primary vertex", "Track", ("TrackD0",)),
    InputColumn("Track_dz", "f4", "cm", "impact parameter along the beam, relative to the primary vertex", "Track",
                ("TrackD0", "TrackDz")),
    InputColumn("Track_highPurity", "u1", "", "1 for tracks of high purity (and where the input does not say)",
                "Track", TRACKS, optional=True, default=1),
    *_positions("PixelHit", "hit in the pixel barrel", PIXELS),
    InputColumn("PixelHit_layer", "u1", "", "its layer, 1 to 4", "PixelHit", PIXELS),
    *_positions("StripHit", "hit in the silicon strips", STRIPS),
    InputColumn("StripHit_subdet", "u1", "", "its subdetector: 3 TIB, 4 TID, 5 TOB, 6 TEC", "StripHit", STRIPS),
    InputColumn("StripHit_layer", "u1", "", "its layer, disk or wheel, from 1", "StripHit", STRIPS),
    InputColumn("ImagePixel_channel", "u1", "", f"channel of a pixel of a ready-made image: {', '.join(CHANNELS)}, "
                "from 0", "ImagePixel", CHANNELS),
    InputColumn("ImagePixel_index", "i4", "", "its place: row * 360 + column, in HCAL the tower's row * 72 + column",
                "ImagePixel", CHANNELS),
    InputColumn("ImagePixel_value", "f4", "", "what it holds, in the channel's unit", "ImagePixel", CHANNELS),
    *_directions("Photon", "photon", "Photon"),
    InputColumn("Photon_seedDetId", "u4", "", "raw detid of the supercluster's most energetic crystal, 0 if unknown",
                "Photon", (), "Photon", optional=True),
    InputColumn("Photon_superClusterIdx", "i4", "", "the photon's supercluster, -1 if unknown", "Photon", (), "Photon",
                optional=True, default=-1),
    _truth("Photon", "1 electron, 0 photon"),
    InputColumn("SuperClusterCrystal_superClusterIdx", "i4", "", "the supercluster that a crystal belongs to",
                "SuperClusterCrystal", (), "Photon", optional=True, default=-1),
    InputColumn("SuperClusterCrystal_detid", "u4", "", "raw detid of the crystal", "SuperClusterCrystal", (), "Photon",
                optional=True),
    *_directions("Jet", "anti-kT jet with R = 0.4", "Jet"),
    _truth("Jet", "1 light quark, 0 gluon"),
    *_directions("FatJet", "anti-kT jet with R = 0.8", "FatJet"),
    _truth("FatJet", "2 hadronic tau, 1 hadronic top, 0 neither"),
    *_directions("PFCand", "particle that jets can be made of"),
    InputColumn("PV_x", "f4", "cm", "vertices, the first is the primary one", "PV"),
    InputColumn("PV_y", "f4", "cm", "vertices, the first is the primary one", "PV"),
    InputColumn("PV_z", "f4", "cm", "vertices, the first is the primary one", "PV"),
)  # fmt: skip
"""The input schema, tree `Events`."""

TIME = InputColumn("time", "i8", "ns", "when it was recorded, since 1970 or since the run began", optional=True)
"""What a feed with `arrivals = "recorded"` goes by. It is no part of an event's way."""

READABLE = (*INPUT, TIME)
"""All that can be read of an input."""

INPUT_BY_NAME = {column.name: column for column in READABLE}

_RECHITS = {"ECAL": ("EBRecHit", "EERecHit"), "HCAL": ("HBHERecHit",)}
SOURCES: dict[str, tuple[tuple[str, ...], ...]] = {
    **dict.fromkeys(TRACKS, (("ImagePixel",), ("Track",))),
    **dict.fromkeys(PIXELS, (("ImagePixel",), ("PixelHit",))),
    **{channel: (("ImagePixel",), hits, ("Tower",)) for channel, hits in _RECHITS.items()},
    **dict.fromkeys(STRIPS, (("ImagePixel",), ("StripHit",))),
}
"""The collections that a channel can be made from; the first that a file has is taken."""

IDENTITY = (
    Column("run", "u4", doc="run number"),
    Column("luminosityBlock", "u4", doc="lumisection number"),
    Column("event", "u8", doc="event number"),
    Column("sourceFile", "i4", doc="place of the source file in the list of inputs"),
    Column("sourceEntry", "i8", doc="entry in the source file"),
    Column("replay", "u4", doc="pass over the input, from 0"),
)
"""Who an event is: (sourceFile, sourceEntry, replay) names each fed event."""

SOURCE_INPUT = Column("sourceInput", "i4", doc="place in the mix of the input that the event is of")


def identity(config: Config) -> list[Column]:
    """What stands first in each schema; of a mix, also which of its inputs an event is of, and where the feed counts
    lumisections, that."""
    mix = [SOURCE_INPUT] if config.input.weights else []
    return [*IDENTITY, *mix, *([LUMISECTION] if config.feed.lumisection else [])]


def needed(config: Config) -> list[InputColumn]:
    """The input columns that the configured taggers can make use of, whatever kind of file they come from."""
    wanted = {c.name for channel in config.channels for source in SOURCES[channel] for c in channel_columns(
        config, channel, source)}  # fmt: skip
    return [c for c in INPUT if not c.collection or c.name in wanted or c.objects in config.objects]


def channel_columns(config: Config, channel: str, source: tuple[str, ...]) -> list[InputColumn]:
    """The columns that a channel needs where it is made from these collections."""
    also: tuple[str, ...] = ()
    if source == ("Track",) and config.framer.tracks_at == "ecal":
        also = ("Track_pt", "Track_charge", "Track_d0", "Track_dz", *VERTEX)
    if source in (("PixelHit",), ("StripHit",)) and config.framer.hits_from == "vertex":
        also = VERTEX
    return [c for c in INPUT if (c.collection in source and channel in c.channels) or c.name in also]


VERTEX = ("PV_x", "PV_y", "PV_z")


def complete(config: Config, columns: Columns, n_events: int) -> Columns:
    """What the taggers can make use of, with what columns mean that an input does not have."""
    out: Columns = {}
    for column in needed(config):
        per, n = column.collection, n_events
        if per:
            counts = out.setdefault(f"n{per}", columns.get(f"n{per}", np.zeros(n_events, np.int32)))
            n = int(counts.sum())
        given = columns.get(column.name)
        out[column.name] = np.full(n, column.default, column.wire.wire_dtype) if given is None else given
    return out


def _collections(columns: Iterable[Column]) -> list[Column]:
    """The columns, each collection's count column before its first member."""
    out: list[Column] = []
    known = {"event"}
    for column in columns:
        if column.per not in known:
            known.add(column.per)
            out.append(count_column(column.per))
        out.append(column)
    return out


def _objects(config: Config) -> list[Column]:
    """What goes all the way: where the objects are, and what they truly are."""
    own = [column for column in INPUT if column.objects in config.objects]
    return [column.wire for column in own if not column.optional or column.name in LABELS.values()]


SEEDED = Column("seeded", "u1", doc="1 where some path's seed wants the event to be worked on; else it has no hits")


def _seeded(config: Config) -> list[Column]:
    """`SEEDED`, where there is a menu that can leave events out."""
    if not config.menu.paths:
        return []
    from stages.menu.seeds import saves

    return [SEEDED] if saves(config) else []


def hits(config: Config) -> Schema:
    """Reader to framer."""
    columns = [c.wire for c in needed(config)[3:]]
    return Schema([*CORE_COLUMNS, *identity(config), *_seeded(config), *_collections(columns)])


def _frame(config: Config) -> list[Column]:
    """The detector frame as its non-empty pixels, ordered by event and channel."""
    doc = "row * 360 + column in the 280 x 360 frame; in HCAL row * 72 + column of a tower, which is 5 x 5 pixels"
    return [
        count_column("Pixel", shape=(len(config.channels),), doc="non-empty pixels (HCAL: towers) of each channel"),
        Column("Pixel_index", "i4", "Pixel", doc=doc),
        Column("Pixel_value", "f4", "Pixel", doc="what the channel holds there, in its unit"),
    ]


def frames(config: Config) -> Schema:
    """Framer to cropper."""
    seed = [INPUT_BY_NAME["Photon_seedDetId"].wire] if "Photon" in config.objects else []
    objects = _collections([*_objects(config), *seed])
    return Schema([*CORE_COLUMNS, *identity(config), *_seeded(config), *objects, *_frame(config)])


def _seeds(config: Config) -> list[Column]:
    out = []
    for objects in config.objects:
        doc = "{} of the object's seed pixel in the frame, -1 without a seed"
        out.append(Column(f"{objects}_seedRow", "i2", objects, doc=doc.format("row")))
        out.append(Column(f"{objects}_seedCol", "i2", objects, doc=doc.format("column")))
    return out


def crop_names(tagger: str) -> tuple[str, str]:
    """The collections of a tagger's crops and of their pixels; taggers that see the same share the first one's."""
    return f"{tagger.capitalize()}Crop", f"{tagger.capitalize()}Pixel"


def crop_index_dtype(size: int) -> str:
    """What holds the place of a pixel, or of a tower, in a crop of this side."""
    return "u2" if (size + TOWER - 1) ** 2 <= 1 << 16 else "u4"


def _crops(tagger: str, spec: TaggerSpec) -> list[Column]:
    crop, pixel = crop_names(tagger)
    over, wide = TOWER - 1, spec.crop + TOWER - 1
    doc = (
        f"row * {spec.crop} + column in the crop; in HCAL (row + {over}) * {wide} + column + {over} of a tower's first "
        f"pixel, which may be up to {over} rows and columns outside"
    )
    return [
        count_column(crop, doc=f"crops for the {tagger} tagger, and for those that see the same"),
        Column(f"{crop}_object", "i4", crop, doc=f"place of the {spec.objects} in its event"),
        count_column(pixel, crop, (len(spec.channels),), "non-empty pixels (HCAL: towers) of each channel of the crop"),
        Column(f"{pixel}_index", crop_index_dtype(spec.crop), pixel, doc=doc),
        Column(f"{pixel}_value", "f4", pixel, doc="what the channel holds there, in its unit"),
    ]


def crops(config: Config) -> Schema:
    """Cropper to tagger: the crops as their non-empty pixels, ordered by event, object and channel.

    The frame goes along where a tagger sees it whole.
    """
    objects = _collections([*_objects(config), *_seeds(config)])
    return Schema([*CORE_COLUMNS, *identity(config), *objects, *_seen(config)])


def _seen(config: Config) -> list[Column]:
    """What the networks see."""
    shared = dict.fromkeys(config.crops.values())
    per_tagger = [column for name in shared for column in _crops(name, config.taggers[name])]
    return [*per_tagger, *(_frame(config) if sees_frames(config) else [])]


def sees_frames(config: Config) -> bool:
    """Whether a tagger sees whole frames."""
    return any(spec.objects == "Event" for spec in config.taggers.values())


def crop_streams(config: Config) -> list[str]:
    """The streams of the menu that keep what the networks saw."""
    return [name for name, stream in config.menu.streams.items() if stream.keeps_crops]


def kept_crops(config: Config) -> list[Column]:
    """What such a stream tells of that: collections directly under the event, as files of events have them."""
    out = []
    for name in dict.fromkeys(config.crops.values()):
        (crop, pixel), spec = crop_names(name), config.taggers[name]
        _, of, _, index, _ = _crops(name, spec)
        out += [
            count_column(crop, doc=f"crops that the {name} tagger was given"),
            Column(idx_column(crop, spec.objects), "i4", crop, doc=of.doc),
            count_column(pixel, doc="non-empty pixels (HCAL: towers) of all crops"),
            Column(f"{pixel}_cropIdx", "i4", pixel, doc="place of the crop in its event"),
            *_kept_pixels(pixel, index),
        ]
    if sees_frames(config):
        _, index, _ = _frame(config)
        out += [
            count_column("Pixel", doc="non-empty pixels (HCAL: towers) of the frame"),
            *_kept_pixels("Pixel", index),
        ]
    return out


def _kept_pixels(pixel: str, index: Column) -> list[Column]:
    channels = f"place of its channel, from 0, in: {', '.join(CHANNELS)}"
    return [
        Column(f"{pixel}_channel", "u1", pixel, doc=channels),
        Column(f"{pixel}_index", index.dtype, pixel, doc=index.doc),
        Column(f"{pixel}_value", "f4", pixel, doc="what the channel holds there, in its unit"),
    ]


def idx_column(crop: str, objects: str) -> str:
    """Where the place of a crop's object stands, as NanoAOD calls such a column: `EgCrop_photonIdx`."""
    return f"{crop}_{objects[0].lower()}{objects[1:]}Idx"


def score_column(name: str, spec: TaggerSpec) -> Column:
    """Where a tagger's score stands."""
    per = "event" if spec.objects == "Event" else spec.objects
    return Column(f"{spec.objects}_{spec.score}", "f4", per, doc=f"score of the {name} tagger, -1 for none")


def model_column(name: str) -> Column:
    """Which network a tagger had for an event."""
    return Column(f"{name}Model", "u8", doc=f"first 64 bits of the SHA-256 of the {name} tagger's network")


def scored(config: Config) -> list[Column]:
    """What is known of each event when it is scored."""
    models = [model_column(name) for name in config.taggers]
    own = [score_column(name, spec) for name, spec in config.taggers.items()]
    objects = _collections([*_objects(config), *_seeds(config), *own])
    return [*CORE_COLUMNS, *identity(config), *models, *objects]


def scores(config: Config) -> Schema:
    """Tagger to writer; what the networks saw goes along where a stream keeps it."""
    return Schema([*scored(config), *(_seen(config) if crop_streams(config) else [])])


def decisions(config: Config) -> list[Column]:
    """What the writer adds where there is a menu: of each path a bit an event, the first path's is the lowest."""
    if not config.menu.paths:
        return []
    shape, bits = (-(-len(config.menu.paths) // 8),), "paths (a bit each) {}"
    return [
        Column("pathSeeded", "u1", shape=shape, doc=bits.format("whose seed the event fulfils")),
        Column("pathPassed", "u1", shape=shape, doc=bits.format("that it passes, before prescales")),
        Column("pathAccepted", "u1", shape=shape, doc=bits.format("that it passes, after prescales")),
        Column("prescaleColumn", "u1", doc="place of the prescale column that held for the event's lumisection"),
    ]


def journal(config: Config) -> Schema:
    """What the writer keeps: the scores, what the menu decides, and the crops of events for streams that keep those."""
    return Schema([*scores(config).columns, *decisions(config)])


def decided(config: Config) -> list[Column]:
    """What the output tells of the menu's decisions."""
    menu = config.menu
    datasets = [name for stream in menu.streams.values() for name in stream.datasets]
    return [
        *(Column(path_column(name), "b1", doc=f"accepted by {name}, after its prescale") for name in menu.paths),
        *(Column(f"{path_column(name)}_prescale", "u4", doc=f"of {name}; 0 = off") for name in prescaled(config)),
        *(Column(f"Stream_{name}", "b1", doc=f"is in the stream {name}") for name in menu.streams),
        *(Column(f"Dataset_{name}", "b1", doc=f"is in the dataset {name}") for name in datasets),
    ]


def path_column(path: str) -> str:
    """Where a path's decision stands, as NanoAOD calls it."""
    return path if path.startswith("HLT_") else f"HLT_{path}"


def prescaled(config: Config) -> list[str]:
    """The paths with another prescale than 1 in some prescale column; of the others it always is 1."""
    menu = config.menu
    return [
        name
        for name, spec in menu.paths.items()
        if spec.prescale != 1 or any(column.get(name, 1) != 1 for column in menu.columns.values())
    ]


def output(config: Config) -> Schema:
    """The output tree `Events`: the scores without the core's bookkeeping, and the menu's decisions."""
    own = {FED_TIME.name, *(column.name for column in WHY)}
    return Schema([*(c for c in scored(config) if c.name not in own), *decided(config)])
