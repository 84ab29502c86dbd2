"""CamVid, road scenes with a class for every pixel (Brostow, Fauqueur & Cipolla 2009), in both published forms."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from transfer_jax.core.errors import UserError
from transfer_jax.core.labels import VOID
from transfer_jax.data.dataset import Dataset
from transfer_jax.data.decoding import UnreadableImage, decode_image, decode_mask
from transfer_jax.data.sources.locations import standard_folder

SPLITS = ("train", "val", "test")
COLOURS = "label_colors.txt"

# The eleven classes that papers report on, in SegNet's order, and the original ones that each unites.
ELEVEN = {
    "sky": ("Sky",), "building": ("Building", "Wall", "Bridge", "Tunnel", "Archway"),
    "pole": ("Column_Pole", "TrafficCone"), "road": ("Road", "LaneMkgsDriv", "LaneMkgsNonDriv"),
    "pavement": ("Sidewalk", "ParkingBlock", "RoadShoulder"), "tree": ("Tree", "VegetationMisc"),
    "sign": ("SignSymbol", "Misc_Text", "TrafficLight"), "fence": ("Fence",),
    "car": ("Car", "SUVPickupTruck", "Truck_Bus", "Train", "OtherMoving"),
    "pedestrian": ("Pedestrian", "Child", "CartLuggagePram", "Animal"), "bicyclist": ("Bicyclist", "MotorcycleScooter"),
}

Read = Callable[[], bytes]
ToNumbers = Callable[[bytes, str], np.ndarray]


class Scenes(Dataset):
    """`image` and `mask`, whose pixels without a class are `VOID`."""

    def __init__(self, pairs: Sequence[tuple[str, Read, Read]], numbers: ToNumbers, class_names: Sequence[str]):
        self._pairs, self._numbers, self.class_names = list(pairs), numbers, tuple(class_names)

    def __len__(self) -> int:
        return len(self._pairs)

    def load(self, row: int) -> dict[str, Any]:
        name, image, mask = self._pairs[row]
        found = {"image": decode_image(image(), f"CamVid {name}"), "mask": self._numbers(mask(), f"CamVid {name}")}
        if found["image"].shape[:2] != found["mask"].shape:
            raise UnreadableImage(f"CamVid {name}: its image is {found['image'].shape[:2]}, its mask "
                                  f"{found['mask'].shape}; replace one of them")
        return found

    def name_of(self, row: int) -> str:
        return f"CamVid {self._pairs[row][0]}"


def camvid_source(*, folder: str | None = None, classes: int = 11) -> dict[str, Dataset]:
    """Splits train, val and test of CamVid with the classes `ELEVEN`; pixels of none are void (255).

    In SegNet's form, as folders or one .zip: `train/NAME.png` (or .jpg) beside `trainannot/NAME.png` of class numbers,
    11 for void, and so on; its folders are the split of 367, 101 and 233 images that papers use. In the original form:
    `label_colors.txt`, images NAME.png, masks NAME_L.png of these colours in any folders, and train.txt, val.txt,
    test.txt with one NAME a line, since no split was published with it; there `classes=32` takes all original classes
    instead (those beside Void).

    Raises:
      UserError: for files that are missing or do not belong together.
    """
    if classes not in (11, 32):
        raise UserError(f"CamVid has 11 or 32 classes, not {classes}; correct `classes`")
    place = standard_folder("camvid_half", folder)
    files = _files(place)
    if f"{place.name}/{COLOURS}" in files:
        return _original(place, files, classes)
    if classes != 11:
        raise UserError(f"the folder {str(place)!r} has no {COLOURS}, so it is CamVid with 11 classes; leave `classes` "
                        f"out, or give a `folder` of the original form")
    splits = {split: _pairs_of(place, files, split) for split in SPLITS}
    splits = {split: pairs for split, pairs in splits.items() if pairs}
    if not splits:
        raise UserError(f"the folder {str(place)!r} holds neither folders train, val, test with images and trainannot, "
                        f"valannot, testannot with masks, nor a .zip of them, nor {COLOURS}; complete it or give "
                        f"another `folder`")
    return {split: Scenes(pairs, _numbered, tuple(ELEVEN)) for split, pairs in splits.items()}


def _files(place: Path) -> dict[str, Read]:
    """What lies in the folder, its subfolders and its archives, by the last two parts of its path.

    An archive is held in memory: one on disk has one file position, which all reading threads would share.
    """
    found: dict[str, Read] = {}
    for file in sorted(place.rglob("*")):
        if file.suffix.lower() != ".zip":
            found |= {f"{file.parent.name}/{file.name}": file.read_bytes} if file.is_file() else {}
            continue
        try:
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    found["/".join(PurePosixPath(name).parts[-2:])] = functools.partial(bytes, archive.read(name))
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{str(file)!r} is no whole archive ({error}); fetch it again") from error
    return found


def _pairs_of(place: Path, files: Mapping[str, Read], split: str) -> list[tuple[str, Read, Read]]:
    """The images of SegNet's folder `split` with their masks, sorted by name."""
    names = sorted(name for name in files if name.startswith(f"{split}/") and name.endswith((".png", ".jpg")))
    pairs = []
    for name in names:
        mask = f"{split}annot/{PurePosixPath(name).stem}.png"
        if mask not in files:
            raise UserError(f"CamVid in {str(place)!r}: the image {name} has no mask {mask}; complete it")
        pairs.append((name, files[name], files[mask]))
    return pairs


def _numbered(content: bytes, name: str) -> np.ndarray:
    mask = decode_mask(content, f"{name} (mask)")
    if mask.max(initial=0) > len(ELEVEN):
        raise UnreadableImage(f"{name}: its mask has the number {mask.max()}, but CamVid's are 0 ... {len(ELEVEN)}; "
                              f"replace it")
    return np.where(mask == len(ELEVEN), VOID, mask).astype(np.int32)


def _original(place: Path, files: Mapping[str, Read], classes: int) -> dict[str, Dataset]:
    """Colours as masks, and the lists of names as splits."""
    colours = read_colours(files[f"{place.name}/{COLOURS}"]().decode(), str(place / COLOURS))
    names = [name for name in colours if name != "Void"] if classes == 32 else list(ELEVEN)
    united = {old: new for new, olds in ELEVEN.items() for old in olds}
    new = {old: old if classes == 32 else united.get(old) for old in colours}
    numbers = {int(_packed(np.array(colour))): names.index(new[old]) if new[old] in names else VOID
               for old, colour in colours.items()}
    stems = {PurePosixPath(name).stem: name for name in files if name.endswith((".png", ".jpg"))}
    splits = {}
    for split in SPLITS:
        if f"{place.name}/{split}.txt" not in files:
            continue
        listed = [PurePosixPath(line.strip()).stem for line in files[f"{place.name}/{split}.txt"]().decode().split()]
        for stem in listed:
            if not {stem, f"{stem}_L"} <= set(stems):
                raise UserError(f"CamVid in {str(place)!r}: {split}.txt names {stem!r}, but there is no "
                                f"{stem if stem not in stems else stem + '_L'}.png; complete the folder")
        splits[split] = Scenes([(stem, files[stems[stem]], files[stems[f"{stem}_L"]]) for stem in listed],
                               functools.partial(_coloured, numbers=numbers), names)
    if not splits:
        raise UserError(f"CamVid in {str(place)!r} comes without lists; write train.txt, val.txt and test.txt there, "
                        f"with one name of an image a line")
    return splits


def read_colours(text: str, where: str) -> dict[str, tuple[int, int, int]]:
    """Lines `R G B name` -> colours by name."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 4 or not all(part.isdigit() and int(part) < 256 for part in parts[:3]):
            raise UserError(f"{where}, line {number}: {line!r} is no colour and name, such as '64 128 64 Animal'; mend "
                            f"it")
        found[parts[3]] = tuple(map(int, parts[:3]))
    return found


def _packed(colours: np.ndarray) -> np.ndarray:
    """[..., 3] of bytes -> one number each."""
    return colours.astype(np.int64) @ np.array([65536, 256, 1])


def _coloured(content: bytes, name: str, numbers: Mapping[int, int]) -> np.ndarray:
    """The mask of a picture in colours, by the number of every packed colour."""
    picture = decode_image(content, f"{name} (mask)")
    packed = _packed(np.repeat(picture, 3, -1) if picture.shape[-1] == 1 else picture)
    found, places = np.unique(packed, return_inverse=True)
    for one in found:
        if int(one) not in numbers:
            colour = ", ".join(str(one >> shift & 255) for shift in (16, 8, 0))
            raise UnreadableImage(f"{name}: its mask has the colour {colour}, which is not in {COLOURS}; mend one of "
                                  f"them")
    return np.array([numbers[int(one)] for one in found], np.int32)[places].reshape(packed.shape)
