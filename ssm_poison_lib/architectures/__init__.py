"""The models that people train: S4D, LRU and Mamba-2, one file each, and a model around them."""

from ssm_poison_lib.architectures.lru import LRU
from ssm_poison_lib.architectures.mamba2 import Mamba2
from ssm_poison_lib.architectures.model import SequenceModel
from ssm_poison_lib.architectures.s4d import S4D

__all__ = ["LRU", "S4D", "Mamba2", "SequenceModel"]
