"""Copies of batches to a device: they do not wait for it, and it computes meanwhile.

The libraries wait for each copy, and on a GPU with it for all steps before. Nothing needs that: a collator makes new tables for
each batch, nobody writes to them again, and a GPU and a Gaudi keep them until they are copied.
"""

WAITING = ("cpu", "mps")  # devices to which nothing is copied, or from memory that changes meanwhile


class UnwaitedCopies:
    """Mixin for a trainer: accelerate copies batches from pinned memory without waiting, unless a flag says otherwise.

    optimum-habana 1.21.2 reads its --non_blocking_data_copy when accelerate has copied the batch.
    """

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        asked = self.args.non_blocking_data_copy
        asked = self.args.dataloader_pin_memory if asked is None else asked
        self.accelerator.dataloader_config.non_blocking = asked and self.args.device.type not in WAITING
