"""Examples looked at before anybody waits for them: what training would stumble over, or never see."""

from collections import Counter, defaultdict
from itertools import chain

import numpy

from common.data.examples import Examples
from common.data.images import inspect
from common.data.rows import counted, shown
from common.errors import DataError
from common.listing import first_few


def inspected(examples: Examples, *, thorough: bool = False) -> Examples:
    """The same, with what there is to be told of their images among their notes. Raises DataError."""
    return examples.noted(*inspect_images(examples, thorough=thorough))


def inspect_images(examples: Examples, *, thorough: bool = False) -> tuple[str, ...]:
    """What their owner should know of the images, a line each; of texts nothing.

    Otherwise the files' headers are read, and the pixels of more than 8 bits; `thorough` decodes all.
    Raises DataError when some cannot be used, with their number and the first of them.
    """
    broken: list[DataError] = []
    scales: Counter[str] = Counter()
    told: dict[str, list[str]] = defaultdict(list)
    for i, image in enumerate(examples.images or ()):
        try:
            sampled = scales.total() < _SAMPLE
            found = inspect(image, examples.name_of(i), thorough=thorough, sampled=sampled)
        except DataError as error:
            broken.append(error)
            continue
        if found is None:
            continue
        if found.scale:
            scales[found.scale] += 1
            if numpy.asarray(found.pixels).max() < _ALMOST_BLACK:
                told["almost black, as their values are far below the most that their bits hold"].append(
                    examples.name_of(i)
                )
        if found.frames > 1:
            told["of several pages or frames, of which the first is taken"].append(examples.name_of(i))
    if broken:
        more = f" (and {counted(len(broken) - 1, 'more image')} that cannot be used)" if broken[1:] else ""
        raise DataError(f"{broken[0]}{more}")
    notes = [
        f"{examples.source}: {counted(len(names), 'image')} {what}: {first_few(names)}"
        for what, names in told.items()
    ]
    if scales:
        sampling = not thorough and scales.total() >= _SAMPLE
        ranges = ", ".join(f"{number:,} from {scale}" for scale, number in sorted(scales.items()))
        notes.append(
            f"{examples.source}: {'at least ' if sampling else ''}{counted(scales.total(), 'image')} "
            f"of more than 8 bits, scaled: {ranges}"
        )
    return tuple(notes)


# Of 16 bits, so many are decoded at a start; all of them would take as long as a pass of training.
_SAMPLE = 64
# Of 255: 12 bits in a file that says 16 come to 15.
_ALMOST_BLACK = 16


def classes_of(examples: Examples) -> str:
    """How many examples each label has, of lists how many items; the rarest last."""
    listed = chain.from_iterable(examples.label_lists or ())
    order = Counter(listed if examples.label_names is None else examples.label_names).most_common()
    return first_few([f"{shown(name)} {number:,}" for name, number in order], 20)
