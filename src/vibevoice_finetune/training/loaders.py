"""The micro-batches of a process: what the loop iterates over."""

import torch

from vibevoice_finetune.arguments import FinetuneArguments
from vibevoice_finetune.data.collate import collate
from vibevoice_finetune.data.dataset import SpeechDataset
from vibevoice_finetune.data.sampler import EpochLoader, RowBatches, TokenBatches
from vibevoice_finetune.errors import DataError
from vibevoice_finetune.training.stop import obey_parent_alone


def train_loader(
    args: FinetuneArguments, rows: SpeechDataset, batch_size: int, max_tokens: int | None = None
) -> EpochLoader:
    """Micro-batches to learn from; their order depends on seed and epoch alone.

    Args:
        args: the loop's flags.
        rows: to learn from.
        batch_size: rows of a micro-batch.
        max_tokens: size of a micro-batch in tokens instead of rows.

    Raises:
        DataError: there is not a single one, because incomplete ones are left out; or a row is longer than one.
    """
    processes = {"rank": args.process_index, "world_size": args.world_size}
    if max_tokens is not None:
        lengths = [row.num_tokens for row in rows.rows]
        return _loader(args, rows, TokenBatches(lengths, max_tokens, seed=args.draw_seed, **processes))
    drop_last, mix = args.dataloader_drop_last, rows.mix
    batches = RowBatches(len(rows), batch_size, seed=args.draw_seed, drop_last=drop_last, mix=mix, **processes)
    if not len(batches):
        raise DataError(
            f"--dataloader_drop_last: {batches.num_rows:,} rows are fewer than the {batch_size * args.world_size:,} of "
            f"one micro-batch{' of all processes' if args.world_size > 1 else ''}, so nothing would be trained; lower "
            "--per_device_train_batch_size or leave the flag out."
        )
    return _loader(args, rows, batches)


def eval_loader(args: FinetuneArguments, rows: SpeechDataset) -> EpochLoader:
    """All rows in their order, divided among the processes."""
    processes = {"rank": args.process_index, "world_size": args.world_size}
    return _loader(args, rows, RowBatches(len(rows), args.per_device_eval_batch_size, seed=None, **processes))


def _loader(args: FinetuneArguments, rows: SpeechDataset, batches: RowBatches | TokenBatches) -> EpochLoader:
    return EpochLoader(
        rows,  # type: ignore[arg-type]  # indexed by Draw, which DataLoader's annotations do not foresee
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        worker_init_fn=obey_parent_alone,
        generator=torch.Generator().manual_seed(args.draw_seed),
    )
