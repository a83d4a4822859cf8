"""Small shards become large ones, so that a store of many runs opens as fast as a store of one.

A kill may cost at most a minute of work, so a shard is published every minute: on a slow processor, a thousand hours of
audio are fifteen thousand small files. When a filling ends, they are read and written again as large ones.

Safe at any moment: the large shard is complete before the small ones go, and until they do, both hold the same entries,
of which a reader takes either. A reader whose shard is gone looks at the folder again (`LatentStore.read`). One process
merges at a time; the others go on without.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from vibevoice_finetune.errors import UserError
from vibevoice_finetune.files.atomic import WriteError
from vibevoice_finetune.files.locks import InUseError, locked
from vibevoice_finetune.latents.shards import (
    FULL_SHARD_FRAMES,
    KEY_TYPE,
    SUFFIX,
    DamagedEntryError,
    Floats,
    Keys,
    Part,
    Shard,
    ShardError,
    read_shard,
    write_shard,
)
from vibevoice_finetune.latents.store import LatentStore

logger = logging.getLogger(__name__)

MERGE_FROM = 16
"""The number of small shards that starts a merge. So an entry is written again only once in this many fillings."""


def merge_small_shards(store: LatentStore) -> None:
    """Merge the small shards of a store's folder where there are many; what cannot be merged stays as it is.

    Call `store.reload()` afterwards.
    """
    if len(list(store.shard_folder.glob(f"*{SUFFIX}"))) < MERGE_FROM:
        return
    try:
        with locked(store.shard_folder, "merge latents"):
            for group in _groups(store):
                _merge(store, group)
    except InUseError:  # it is done by another process
        return
    except WriteError as error:
        logger.warning("small files of latents stay as they are: %s", error)


def _groups(store: LatentStore) -> Iterator[list[Shard]]:
    """Small shards that may become one: of the same encoder and the same arithmetic."""
    small: dict[tuple[Part, str], list[Shard]] = defaultdict(list)
    in_large: dict[Part, list[Keys]] = {part: [] for part in Part}
    for path in sorted(store.shard_folder.glob(f"*{SUFFIX}")):
        try:
            shard = read_shard(path, store.kind)
        except (ShardError, UserError, FileNotFoundError):  # not ours, not readable, or replaced just now
            continue
        if int(shard.frames.sum()) <= FULL_SHARD_FRAMES // 2:
            small[shard.part, shard.arithmetic].append(shard)
        else:
            in_large[shard.part].append(shard.keys)
    for (part, _), group in small.items():
        if len(group) < MERGE_FROM:
            continue
        large = np.concatenate([np.zeros(0, dtype=KEY_TYPE), *in_large[part]])
        for shard in group:
            if np.isin(shard.keys, large).all():  # a kill came between writing the large one and removing this
                shard.path.unlink(missing_ok=True)
        yield group


def _merge(store: LatentStore, group: list[Shard]) -> None:
    held: dict[str, Floats] = {}  # by key, so that what two jobs have encoded at once is kept once
    sources: list[Shard] = []
    frames = 0
    for shard in group:
        try:
            entries = shard.entries()
        except (DamagedEntryError, OSError):  # gone, or damaged: that is repaired by the next check
            continue
        held.update(entries)
        sources.append(shard)
        frames += int(np.sum(shard.frames))
        if frames >= FULL_SHARD_FRAMES:
            _replace(store, sources, held)
            held, sources, frames = {}, [], 0
    if len(sources) > 1:
        _replace(store, sources, held)


def _replace(store: LatentStore, sources: list[Shard], entries: dict[str, Floats]) -> None:
    first = sources[0]
    write_shard(store.shard_folder, store.kind, first.part, first.arithmetic, list(entries.items()))
    for shard in sources:
        shard.path.unlink(missing_ok=True)
