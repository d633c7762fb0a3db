"""Counts of images by their tags."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class TagCounts:
    """Numbers of images in one part of a data set.

    Attributes:
      images: number of all images.
      per_class: number of images with each of the C classes.
      untagged: number of images without tags.
      most: the greatest number of tags of an image.
    """

    images: int
    per_class: tuple[int, ...]
    untagged: int
    most: int

    @classmethod
    def of(cls, numbers, num_classes):
        """Counts tags.

        Args:
          numbers: for each image, the distinct indices of its tags in the class list.
          num_classes: C.
        """
        lengths = [len(own) for own in numbers]
        flat = np.array([number for own in numbers for number in own], int)
        per_class = np.bincount(flat, minlength=num_classes).tolist()
        return cls(len(lengths), tuple(per_class), lengths.count(0), max(lengths, default=0))
