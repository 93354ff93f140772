"""Every column, declared once: what the input files hold, and what travels on each hop.

Names, units and meanings follow CMS NanoAOD where it has them (GeV, cm, ns; phi in [-pi, pi)).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from stages.config import Config, TaggerSpec
from streamer.block import CORE_COLUMNS, Column, Schema, count_column


@dataclass(frozen=True)
class InputColumn:
    """A column of the input tree.

    Parameters
    ----------
    collection : str
        The collection it belongs to, or empty for one value an event.
    channels : tuple of str
        The detector channels that are made from it.
    objects : str
        The objects that need it.
    optional : bool
        Nothing is lost without it.
    """

    name: str
    dtype: str
    unit: str
    doc: str
    collection: str = ""
    channels: tuple[str, ...] = ()
    objects: str = ""
    optional: bool = False

    @property
    def wire(self) -> Column:
        """The same column on a hop."""
        return Column(self.name, self.dtype, self.collection or "event", (), self.unit, self.doc)


def _hits(collection: str, what: str, channels: tuple[str, ...]) -> list[InputColumn]:
    return [
        InputColumn(f"{collection}_detid", "u4", "", f"raw detid of the {what}", collection, channels),
        InputColumn(f"{collection}_energy", "f4", "GeV", f"energy of the {what}", collection, channels),
        InputColumn(f"{collection}_time", "f4", "ns", f"time of the {what}", collection, optional=True),
    ]


def _directions(collection: str, what: str, objects: str = "") -> list[InputColumn]:
    return [
        InputColumn(f"{collection}_pt", "f4", "GeV", f"transverse momentum of the {what}", collection, (), objects),
        InputColumn(f"{collection}_eta", "f4", "", f"pseudorapidity of the {what}", collection, (), objects),
        InputColumn(f"{collection}_phi", "f4", "rad", f"azimuth of the {what}", collection, (), objects),
    ]


INPUT = (
    InputColumn("run", "u4", "", "run number"),
    InputColumn("luminosityBlock", "u4", "", "lumisection number"),
    InputColumn("event", "u8", "", "event number"),
    *_hits("EBRecHit", "ECAL barrel rechit", ("ECAL",)),
    *_hits("EERecHit", "ECAL endcap rechit", ("ECAL",)),
    *_hits("HBHERecHit", "HCAL barrel or endcap rechit", ("HCAL",)),
    *_directions("Track", "track"),
    InputColumn("Track_charge", "i1", "e", "charge of the track", "Track"),
    InputColumn("Track_d0", "f4", "cm", "impact parameter in the transverse plane, x sin(phi) - y cos(phi) "
                "of the point of closest approach relative to the primary vertex", "Track"),
    InputColumn("Track_dz", "f4", "cm", "impact parameter along the beam, relative to the primary vertex", "Track"),
    InputColumn("Track_highPurity", "u1", "", "1 for tracks of high purity (and where the input does not say)",
                "Track", optional=True),
    *_directions("Photon", "photon", "Photon"),
    InputColumn("Photon_seedDetId", "u4", "", "raw detid of the supercluster's most energetic crystal, 0 if unknown",
                "Photon", (), "Photon", optional=True),
    InputColumn("Photon_genLabel", "i1", "", "truth: 1 electron, 0 photon", "Photon", optional=True),
    *_directions("Jet", "jet"),
    *_directions("FatJet", "large-radius jet"),
    InputColumn("PV_x", "f4", "cm", "primary vertex", "PV"),
    InputColumn("PV_y", "f4", "cm", "primary vertex", "PV"),
    InputColumn("PV_z", "f4", "cm", "primary vertex", "PV"),
)  # fmt: skip
"""The input schema, tree `Events`."""

INPUT_BY_NAME = {column.name: column for column in INPUT}

IDENTITY = (
    Column("run", "u4", doc="run number"),
    Column("luminosityBlock", "u4", doc="lumisection number"),
    Column("event", "u8", doc="event number"),
    Column("sourceFile", "i4", doc="place of the source file in the list of inputs"),
    Column("sourceEntry", "i8", doc="entry in the source file"),
    Column("replay", "u4", doc="pass over the input, from 0"),
)
"""Who an event is: (sourceFile, sourceEntry, replay) names each fed event."""


def needed(config: Config) -> list[InputColumn]:
    """The input columns that the configured taggers need; optional ones are read where they are there."""
    objects = {spec.objects for spec in config.taggers.values()}
    channels = set(config.channels)
    wanted = [c for c in INPUT if channels.intersection(c.channels) or c.objects in objects]
    return [*INPUT[:3], *wanted]


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
    names = {spec.objects for spec in config.taggers.values()}
    return [c.wire for c in INPUT if c.objects in names and not c.optional]


def hits(config: Config) -> Schema:
    """Reader to framer."""
    columns = [c.wire for c in needed(config)[3:]]
    return Schema([*CORE_COLUMNS, *IDENTITY, *_collections(columns)])


def frames(config: Config) -> Schema:
    """Framer to cropper: the detector frame as its non-empty pixels, ordered by event and channel."""
    seeds = [c.wire for c in needed(config) if c.optional]
    return Schema(
        [
            *CORE_COLUMNS,
            *IDENTITY,
            *_collections([*_objects(config), *seeds]),
            count_column("Pixel", shape=(len(config.channels),), doc="non-empty pixels of each channel"),
            Column("Pixel_index", "i4", "Pixel", doc="row * 360 + column in the 280 x 360 frame"),
            Column("Pixel_value", "f4", "Pixel", unit="GeV", doc="what the channel holds there"),
        ]
    )


def _seeds(config: Config) -> list[Column]:
    out = []
    for objects in sorted({spec.objects for spec in config.taggers.values()}):
        doc = "{} of the object's seed pixel in the frame, -1 without a seed"
        out.append(Column(f"{objects}_seedRow", "i2", objects, doc=doc.format("row")))
        out.append(Column(f"{objects}_seedCol", "i2", objects, doc=doc.format("column")))
    return out


def crop_names(tagger: str) -> tuple[str, str]:
    """The collections of a tagger's crops and of their pixels."""
    return f"{tagger.capitalize()}Crop", f"{tagger.capitalize()}Pixel"


def _crops(tagger: str, spec: TaggerSpec) -> list[Column]:
    crop, pixel = crop_names(tagger)
    return [
        count_column(crop, doc=f"crops for the {tagger} tagger"),
        Column(f"{crop}_object", "i4", crop, doc=f"place of the {spec.objects} in its event"),
        count_column(pixel, crop, (len(spec.channels),), "non-empty pixels of each channel of the crop"),
        Column(f"{pixel}_index", "u2", pixel, doc=f"row * {spec.crop} + column in the crop"),
        Column(f"{pixel}_value", "f4", pixel, unit="GeV", doc="what the channel holds there"),
    ]


def crops(config: Config) -> Schema:
    """Cropper to tagger: the crops as their non-empty pixels, ordered by event, object and channel."""
    per_tagger = [c for name, spec in config.taggers.items() for c in _crops(name, spec)]
    return Schema([*CORE_COLUMNS, *IDENTITY, *_collections([*_objects(config), *_seeds(config)]), *per_tagger])


def scores(config: Config) -> Schema:
    """Tagger to writer."""
    scored = [
        Column(
            f"{spec.objects}_{spec.score}",
            "f4",
            spec.objects,
            doc=f"score of the {name} tagger, -1 without a seed",
        )
        for name, spec in config.taggers.items()
    ]
    return Schema([*CORE_COLUMNS, *IDENTITY, *_collections([*_objects(config), *_seeds(config), *scored])])


def output(config: Config) -> Schema:
    """The output tree `Events`: the scores without the core's bookkeeping."""
    return Schema(c for c in scores(config).columns if c.name != "fedTime")
