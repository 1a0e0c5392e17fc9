"""Objects whose arrays processes share: the ranks of a node, and data loader workers on a Gaudi.

They are in a file in memory that has no name. It ends with the last process that holds it, so a kill leaves nothing.
"""

import mmap
import os
import pickle
import weakref


ALIGNED = 64  # bytes; each array begins at a multiple


class SharedFile:
    """An object and its arrays, in a file in memory.

    Attributes:
        descriptor: of the file in this process, which closes it when nothing refers to this any more.
        sizes: bytes of the object without its arrays, and of each array.
    """

    def __init__(self, descriptor: int, sizes: list[int]):
        self.descriptor, self.sizes = descriptor, sizes
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def of(cls, value) -> "SharedFile":
        """Write an object; the arrays are those of numpy within it."""
        arrays = []
        head = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
        parts = [memoryview(head), *(array.raw() for array in arrays)]
        shared = cls(os.memfd_create("shared"), [part.nbytes for part in parts])
        with open(shared.descriptor, "wb", closefd=False) as file:
            for part in parts:
                file.write(part)
                file.write(bytes(-part.nbytes % ALIGNED))
        return shared

    @classmethod
    def at(cls, process: int, descriptor: int, sizes: list[int]) -> "SharedFile":
        """Open the file that another process has.

        Raises:
            FileNotFoundError, PermissionError: that process cannot be seen.
        """
        return cls(os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDONLY), sizes)

    def place(self) -> tuple[int, int, list[int]]:
        """Return the arguments with which another process opens the file by `at`."""
        return os.getpid(), self.descriptor, self.sizes

    def read(self):
        """Return the object; its arrays are the content of the file until this process changes them.

        An object with an attribute `shared`, as features have, gets this file there, to be handed on to workers.
        """
        content = memoryview(mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_COPY))
        parts, begin = [], 0
        for size in self.sizes:
            parts.append(content[begin : begin + size])
            begin += size + -size % ALIGNED
        value = pickle.loads(parts[0], buffers=parts[1:])
        if hasattr(value, "shared"):
            value.shared = self
        return value
