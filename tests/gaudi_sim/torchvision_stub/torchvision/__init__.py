"""Replacement of torchvision, which optimum-habana imports and question answering does not need."""
