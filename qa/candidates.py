"""The part of a feature's logits that its answers need: the best starts and ends, and the position of no answer."""

from dataclasses import dataclass, fields

import numpy as np


@dataclass
class Candidates:
    """The part of the logits that answers need: each feature's best starts and ends, and its no-answer position."""

    starts: np.ndarray  # (features, n) positions, best first; -1 where there are fewer
    ends: np.ndarray
    start_logits: np.ndarray  # (features, n)
    end_logits: np.ndarray
    null_logits: np.ndarray  # (features, 2) start and end logit of the no-answer position

    def __len__(self) -> int:
        return len(self.starts)

    def of(self, chosen: np.ndarray) -> "Candidates":
        """Return the candidates of some features."""
        return Candidates(*(getattr(self, column.name)[chosen] for column in fields(self)))

    def packed(self) -> np.ndarray:
        """Return all fields in one (features, 4 n + 2) float32 array, in which positions up to 2 ** 24 are exact."""
        return np.concatenate([getattr(self, column.name) for column in fields(self)], axis=1, dtype=np.float32)

    @classmethod
    def unpacked(cls, table: np.ndarray) -> "Candidates":
        """Return the candidates of a `packed` array."""
        n = (table.shape[1] - 2) // 4
        starts, ends, start_logits, end_logits, null_logits = np.split(table, [n, 2 * n, 3 * n, 4 * n], axis=1)
        return cls(
            starts=starts.astype(np.int32),
            ends=ends.astype(np.int32),
            start_logits=start_logits,
            end_logits=end_logits,
            null_logits=null_logits,
        )


def best_positions(
    logits: tuple[np.ndarray, np.ndarray],
    cls_index: np.ndarray,
    n_best_size: int,
    lengths: np.ndarray | None = None,
) -> Candidates:
    """Return the `n_best_size` best starts and ends of each feature.

    Args:
        logits: of starts and ends, (features, length) each.
        cls_index: (features,) the position that means "no answer".
        lengths: (features,) tokens of each feature. The positions after them are padding and never among the best: how
            far a feature is padded does not change its result. Without lengths every position counts.

    >>> starts, ends = np.array([[0.0, 2.0, 1.0, 9.0]]), np.array([[0.0, 1.0, 2.0, 9.0]])
    >>> best = best_positions((starts, ends), cls_index=np.array([0]), n_best_size=2, lengths=np.array([3]))
    >>> best.starts.tolist(), best.ends.tolist(), best.end_logits.tolist()
    ([[1, 2]], [[2, 1]], [[2.0, 1.0]])
    """
    (starts, start_logits), (ends, end_logits) = (best_of_side(side, n_best_size, lengths) for side in logits)
    null = [np.take_along_axis(side, cls_index[:, None], axis=1) for side in logits]
    return Candidates(
        starts=starts,
        ends=ends,
        start_logits=start_logits,
        end_logits=end_logits,
        null_logits=np.concatenate(null, axis=1),
    )


def best_of_side(logits: np.ndarray, number: int, lengths: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the highest logits, best first, and those logits, (features, number) each.

    Where a feature has fewer positions, the others are -1 and their logits 0.
    """
    if lengths is None:
        # A loop over windows would call the same argsort; with argpartition ties would come out in another order.
        order = np.argsort(logits, axis=1)
    else:
        padding = np.arange(logits.shape[1]) >= lengths[:, None]
        order = np.argsort(np.where(padding, -np.inf, logits), axis=1, kind="stable")
    best = order[:, : -number - 1 : -1].astype(np.int32)
    missing = ((0, 0), (0, number - best.shape[1]))
    values = np.pad(np.take_along_axis(logits, best, axis=1), missing)
    best = np.pad(best, missing, constant_values=-1)
    if lengths is not None:
        padding = best >= lengths[:, None]
        best[padding], values[padding] = -1, 0
    return best, values
