"""`habana_frameworks.torch.utils.internal`."""

from ..counting import is_lazy  # noqa: F401
